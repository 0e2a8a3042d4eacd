package sidecar

import (
	"io"
	"net/http"
	"strings"
	"testing"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

func TestRequestsThroughPair(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Xfcc", r.Header.Get("X-Forwarded-Client-Cert"))
		w.Header().Set("X-Remote", r.RemoteAddr)
		_, _ = io.WriteString(w, r.Method+" "+r.URL.Path+" "+r.Host+" "+string(b))
	}))
	p := newPair(t, setup{app: app, protocol: hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1})
	c := p.httpClient()
	var remote string
	for i := range 5 {
		r, err := c.Post("http://server/a/../b", "text/plain", strings.NewReader("hello"))
		status, got := body(t, r, err)
		if want := "POST /b server hello"; status != 200 || got != want {
			t.Fatalf("got %d %q, want %q", status, got, want)
		}
		if want := "By=" + serverID + ";URI=" + clientID; r.Header.Get("X-Xfcc") != want {
			t.Errorf("client cert field %q, want %q", r.Header.Get("X-Xfcc"), want)
		}
		if i > 0 && r.Header.Get("X-Remote") != remote {
			t.Errorf("application saw another connection: %s then %s", remote, r.Header.Get("X-Remote"))
		}
		remote = r.Header.Get("X-Remote")
	}
}
