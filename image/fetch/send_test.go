package fetch

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestSend(t *testing.T) {
	broken := errors.New("the disk cannot be read")
	data := content()
	for _, test := range []struct {
		name string
		body func() io.Reader
		// serve answers; it gets what came of the body.
		serve func(w http.ResponseWriter, r *http.Request) (n int64, err error)
		want  string // in the error; empty: none
		saw   string // in the server's error of the body
	}{
		{name: "well", body: func() io.Reader { return bytes.NewReader(data) }, serve: func(w http.ResponseWriter, r *http.Request) (int64, error) {
			got, err := io.ReadAll(r.Body)
			if !bytes.Equal(got, data) {
				t.Error("other bytes arrived")
			}
			io.WriteString(w, "thanks")
			return int64(len(got)), err
		}},
		{name: "refused at once", body: func() io.Reader { return iotest.ErrReader(errors.New("the body was asked for")) }, serve: func(w http.ResponseWriter, r *http.Request) (int64, error) {
			http.Error(w, "not now", http.StatusForbidden)
			return 0, nil
		}, want: "answers 403: not now"},
		{name: "refused half-way", body: func() io.Reader { return bytes.NewReader(data) }, serve: func(w http.ResponseWriter, r *http.Request) (int64, error) {
			n, err := io.CopyN(io.Discard, r.Body, 1<<20)
			http.Error(w, "the disk is full", http.StatusInternalServerError)
			// A connection that is closed while the client still sends may be reset
			// before the client has read the answer.
			_ = http.NewResponseController(w).Flush()
			io.Copy(io.Discard, r.Body)
			return n, err
		}, want: "answers 500: the disk is full"},
		{name: "body breaks off", body: func() io.Reader {
			return io.MultiReader(bytes.NewReader(data[:1<<20]), iotest.ErrReader(broken))
		}, serve: func(w http.ResponseWriter, r *http.Request) (int64, error) {
			return io.Copy(io.Discard, r.Body)
		}, want: broken.Error(), saw: "EOF"},
		{name: "nobody takes it", body: func() io.Reader { return zeros{} }, serve: func(w http.ResponseWriter, r *http.Request) (int64, error) {
			n, err := io.CopyN(io.Discard, r.Body, 1<<10)
			time.Sleep(2 * time.Second)
			return n, err
		}, want: "200ms"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			saw := make(chan error, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPut || r.Header.Get("Authorization") != "Bearer secret" {
					t.Errorf("%s with %q", r.Method, r.Header.Get("Authorization"))
				}
				_, err := test.serve(w, r)
				saw <- err
			}))
			defer server.Close()
			c := impatient()
			c.Token = "secret"
			if test.name != "nobody takes it" {
				c.StallLimit = 20 * time.Second
			}
			answer, err := c.Send(t.Context(), server.URL+"/captures/x", test.body())
			if test.want == "" && (err != nil || string(answer) != "thanks") || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%q, %v; want %q", answer, err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the token: %v", err)
			}
			if got := <-saw; test.saw == "" && got != nil || test.saw != "" && (got == nil || !strings.Contains(got.Error(), test.saw)) {
				t.Errorf("the server saw %v; want %q", got, test.saw)
			}
		})
	}
}

// zeros never end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
