package spec

import (
	"strings"
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

// FuzzParseTold reads what anybody may send to a PC that asks: it is one decision, or none.
func FuzzParseTold(f *testing.F) {
	for _, s := range []string{"local\n", "say x\nremote reassure.url=http://a/b\n", "wait 90\n", "# \x00\nlocal", "wait 9223372036854775807", "remote\tx\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		told, err := ParseTold(text)
		decisions := 0
		for _, is := range []bool{told.Local, told.Remote, told.Again > 0} {
			if is {
				decisions++
			}
		}
		switch {
		case err != nil && told != Told{}:
			t.Errorf("%v, and yet %+v", err, told)
		case err == nil && decisions != 1:
			t.Errorf("%d decisions: %+v", decisions, told)
		case strings.ContainsAny(told.CommandLine+told.Say, "\n"):
			t.Errorf("more than a line: %+v", told)
		}
	})
}
