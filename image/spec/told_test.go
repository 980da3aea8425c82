package spec

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseTold(t *testing.T) {
	for text, want := range map[string]Told{
		"# for people\nsay up to date\nlocal\n": {Say: "up to date", Local: true},
		"local":                                 {Local: true},
		"remote reassure.url=http://a/b quiet\r\n": {Remote: true, CommandLine: "reassure.url=http://a/b quiet"},
		"remote\n":                      {Remote: true},
		"say its turn comes\nwait 90\n": {Say: "its turn comes", Again: 90 * time.Second},
		"":                              {},
		"# nothing\n":                   {},
		"local\nremote\n":               {},
		"local, as ever":                {},
		"wait":                          {},
		"wait -1":                       {},
		"wait 1000000":                  {},
		"<html><body>404 Not Found</body></html>\n":    {},
		"#!ipxe\nchain 01-52-54-00-12-34-56.ipxe ||\n": {},
		"remote\nremote reassure.url=http://other/\n":  {},
	} {
		got, err := ParseTold([]byte(text))
		if diff := cmp.Diff(want, got); diff != "" || (err != nil) != (want == Told{}) {
			t.Errorf("%q: error %v (-want +got):\n%s", text, err, diff)
		}
	}
}
