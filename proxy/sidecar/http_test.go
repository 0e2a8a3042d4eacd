package sidecar

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

const (
	http1 = hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1
	tcp   = hauberkv1.AppProtocol_APP_PROTOCOL_TCP
	allow = hauberkv1.Action_ACTION_ALLOW
	deny  = hauberkv1.Action_ACTION_DENY
)

// protocols runs a test with the protocol declared and detected.
func protocols(t *testing.T, f func(t *testing.T, p hauberkv1.AppProtocol)) {
	for name, p := range map[string]hauberkv1.AppProtocol{"declared": http1, "detected": 0} {
		t.Run(name, func(t *testing.T) { f(t, p) })
	}
}

func TestRequestsThroughPair(t *testing.T) {
	protocols(t, func(t *testing.T, proto hauberkv1.AppProtocol) {
		app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("X-Xfcc", r.Header.Get("X-Forwarded-Client-Cert"))
			w.Header().Set("X-Remote", r.RemoteAddr)
			w.Header().Set("X-Traceparent", r.Header.Get("Traceparent"))
			_, _ = io.WriteString(w, r.Method+" "+r.URL.Path+" "+r.Host+" "+string(b))
		}))
		p := newPair(t, setup{app: app, protocol: proto, serverProto: proto})
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
			if tp := r.Header.Get("X-Traceparent"); len(tp) != 55 {
				t.Errorf("traceparent %q", tp)
			}
			if i > 0 && r.Header.Get("X-Remote") != remote {
				t.Errorf("application saw another connection: %s then %s", remote, r.Header.Get("X-Remote"))
			}
			remote = r.Header.Get("X-Remote")
		}
		p.eventually("access logs", func() bool { return strings.Count(p.serverAccess.String(), `"status":200`) == 5 })
		for _, want := range []string{`"source_principal":"` + clientID + `"`, `"destination_principal":"` + serverID + `"`,
			`"method":"POST"`, `"path":"/b"`, `"verdict":"Allow"`, `"trace_id":"`} {
			if !strings.Contains(p.serverAccess.String(), want) {
				t.Errorf("server's access log has no %s:\n%s", want, p.serverAccess.String())
			}
		}
	})
}

func TestBodies(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum, X-Forwarded-Client-Cert")
		w.Header().Set("X-Te", strings.Join(r.TransferEncoding, ","))
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		n, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", fmt.Sprint(n))
		w.Header().Set("X-Forwarded-Client-Cert", "By=evil")
		w.Header().Set("X-Request-Trailer", r.Trailer.Get("X-Late"))
	}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	c := p.httpClient()
	for _, tc := range []struct {
		name    string
		size    int
		chunked bool
	}{{"empty", 0, false}, {"small", 10, false}, {"large", len(big), false}, {"small chunked", 10, true}, {"large chunked", len(big), true}} {
		t.Run(tc.name, func(t *testing.T) {
			var rd io.Reader = bytes.NewReader(big[:tc.size])
			if tc.chunked {
				rd = struct{ io.Reader }{rd}
			}
			r, err := http.NewRequestWithContext(t.Context(), "PUT", "http://server/", rd)
			if err != nil {
				t.Fatal(err)
			}
			if tc.chunked {
				r.Trailer = http.Header{"X-Late": {"yes"}}
			}
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, big[:tc.size]) {
				t.Fatalf("got %d bytes, want %d", len(got), tc.size)
			}
			if tc.size > 0 && resp.Trailer.Get("X-Sum") != fmt.Sprint(tc.size) {
				t.Errorf("trailer %v", resp.Trailer)
			}
			if resp.Trailer.Get("X-Forwarded-Client-Cert") != "" {
				t.Error("identity field passed in a trailer")
			}
			if want := map[bool]string{true: "chunked"}[tc.chunked]; resp.Header.Get("X-Te") != want {
				t.Errorf("application saw transfer encoding %q, want %q", resp.Header.Get("X-Te"), want)
			}
		})
	}
}

func TestContinue(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(413)
			return
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})

	c := p.conn()
	br := bufio.NewReader(c)
	fmt.Fprint(c, "POST /yes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	line, err := br.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	_, _ = br.ReadString('\n')
	fmt.Fprint(c, "hello")
	resp, err := http.ReadResponse(br, nil)
	if status, got := body(t, resp, err); status != 200 || got != "hello" {
		t.Fatalf("got %d %q", status, got)
	}

	// Without a 100 the body is not wanted, and the connection can't go on.
	fmt.Fprint(c, "POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	resp, err = http.ReadResponse(br, nil)
	if status, _ := body(t, resp, err); status != 413 || !resp.Close {
		t.Fatalf("got %d, close %v", status, resp.Close)
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("connection goes on: %v", err)
	}
}

func TestUpgrade(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.URL.Path != "/ws" || r.Header.Get("Upgrade") == "" {
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
				continue
			}
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhi:")
			_, _ = io.Copy(c, br)
			return
		}
	})
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	for _, tc := range []struct{ name, path, upgrade, want string }{
		{"accepted", "/ws", "echo", "HTTP/1.1 101 Switching Protocols"},
		{"refused", "/other", "echo", "HTTP/1.1 200 OK"},
		{"h2c is never forwarded", "/ws", "h2c", "HTTP/1.1 200 OK"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := p.conn()
			// What follows the request is sent early and must not overtake the answer.
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nGET /early HTTP/1.1\r\nHost: x\r\n\r\n", tc.path, tc.upgrade)
			tp := textproto.NewReader(bufio.NewReader(c))
			line, err := tp.ReadLine()
			if err != nil || line != tc.want {
				t.Fatalf("got %q, %v", line, err)
			}
			if _, err := tp.ReadMIMEHeader(); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(tc.want, "101") {
				return
			}
			_ = c.(*net.TCPConn).CloseWrite()
			got, err := io.ReadAll(tp.R)
			if want := "hi:GET /early HTTP/1.1\r\nHost: x\r\n\r\n"; err != nil || string(got) != want {
				t.Fatalf("tunnel gave %q, %v", got, err)
			}
		})
	}
}

// TestStrictness: what is not clearly one request reaches no application.
func TestStrictness(t *testing.T) {
	var seen atomic.Int64
	app := httpApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Add(1) }))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	for _, raw := range []string{
		"GET / HTTP/1.1\nHost: x\n\n",
		"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"GET / HTTP/1.1\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
		"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
		"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
		"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /a%2fb HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /..;/x HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: host\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: authorization\r\nAuthorization: a\r\n\r\n",
		"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nExpect: 200\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 70<<10) + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 200) + "\r\n",
	} {
		c := p.conn()
		_, _ = io.WriteString(c, raw)
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%.60q: %v", raw, err)
			continue
		}
		if r.StatusCode < 400 || r.StatusCode == 403 {
			t.Errorf("%.60q: status %d", raw, r.StatusCode)
		}
		r.Body.Close()
		c.Close()
	}
	if n := seen.Load(); n != 0 {
		t.Errorf("the application saw %d requests", n)
	}
}

func TestIdentityFieldsAreOurs(t *testing.T) {
	var got atomic.Pointer[http.Header]
	app := httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { h := r.Header.Clone(); got.Store(&h) }))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	c := p.conn()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: By=evil\r\nx_forwarded_client_cert: evil\r\n"+
		"X-Forwarded_Client-Cert: evil\r\nX-Hauberk-Principal: evil\r\nX-Forwarded_For: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\n"+
		"Connection: close, x-forwarded-client-cert, x-custom\r\nX-Custom: hop\r\nKeep-Alive: 5\r\nTE: trailers, gzip\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if status, _ := body(t, resp, err); status != 200 {
		t.Fatalf("status %d", status)
	}
	h := *got.Load()
	h.Del("Traceparent")
	want := http.Header{"X-Forwarded-Client-Cert": {"By=" + serverID + ";URI=" + clientID}, "X-Forwarded-For": {"1.2.3.4", "127.0.0.1"},
		"Connection": {"te"}, "Te": {"trailers"}}
	if d := cmp.Diff(want, h); d != "" {
		t.Error(d)
	}
}

func TestPolicyOnRequests(t *testing.T) {
	protocols(t, func(t *testing.T, proto hauberkv1.AppProtocol) {
		app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }))
		p := newPair(t, setup{app: app, protocol: proto, serverProto: proto,
			ingress: tier(rule("no-secret", deny, get(nil, "/secret")), rule("read", allow, get([]string{"GET"}, "/v2/keys")))})
		c := p.httpClient()
		for _, tc := range []struct {
			method, path string
			status       int
			text         string
		}{
			{"GET", "/v2/keys/a", 200, "ok"},
			{"PUT", "/v2/keys/a", 403, "hauberk: denied by tier default: no rule of MeshPolicy bank/api matched, ingress\n"},
			{"GET", "/v2/keysx", 403, "hauberk: denied by tier default: no rule of MeshPolicy bank/api matched, ingress\n"},
			{"GET", "/secret", 403, "hauberk: denied by MeshPolicy bank/api rule no-secret (tier default), ingress\n"},
			{"GET", "/v2/keys/%2e%2e/%2e%2e/secret", 403, "hauberk: denied by MeshPolicy bank/api rule no-secret (tier default), ingress\n"},
			{"GET", "/v2/keys/b", 200, "ok"},
		} {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://server"+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			status, text := body(t, resp, err)
			if status != tc.status || text != tc.text {
				t.Errorf("%s %s: got %d %q, want %d %q", tc.method, tc.path, status, text, tc.status, tc.text)
			}
			if tc.status == 403 && !strings.Contains(resp.Header.Get("X-Hauberk-Denied-By"), "default") && !strings.Contains(resp.Header.Get("X-Hauberk-Denied-By"), "bank/api") {
				t.Errorf("header %q", resp.Header.Get("X-Hauberk-Denied-By"))
			}
		}
		p.eventually("denial in the log", func() bool {
			return strings.Contains(p.log.String(), "denied by policy") && strings.Contains(p.log.String(), "rule=no-secret")
		})
		// What is not HTTP has no request that the policy could allow.
		conn := p.conn()
		_, _ = conn.Write([]byte{0, 1, 2, 3})
		if b, err := io.ReadAll(conn); len(b) > 0 && !bytes.HasPrefix(b, []byte("HTTP/1.1 400")) {
			t.Errorf("opaque bytes were answered: %q, %v", b, err)
		}
	})
}

func TestUnknownPeerIsDenied(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1, peerUnknown: true, ingress: tier(rule("all", allow))})
	r, err := p.httpClient().Get("http://server/")
	if status, _ := body(t, r, err); status != 403 {
		t.Errorf("status %d", status)
	}
}

func TestEgressPolicy(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1, egress: tier(rule("get", allow, get([]string{"GET"}, "/")))})
	c := p.httpClient()
	r, err := c.Get("http://server/")
	if status, _ := body(t, r, err); status != 200 {
		t.Errorf("GET: status %d", status)
	}
	r, err = c.Post("http://server/", "", nil)
	if status, text := body(t, r, err); status != 403 || !strings.HasSuffix(text, ", egress\n") {
		t.Errorf("POST: %d %q", status, text)
	}
}

func TestWrongPodIsRefused(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("the application was reached") }))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1, podUID: "33333333-3333-3333-3333-333333333333"})
	r, err := p.httpClient().Get("http://server/")
	if status, text := body(t, r, err); status != 503 || !strings.Contains(text, "want pod") {
		t.Errorf("got %d %q", status, text)
	}
}

func TestPolicyChangeTakesEffectOnLiveConnections(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	c := p.httpClient()
	r, err := c.Get("http://server/")
	if status, _ := body(t, r, err); status != 200 {
		t.Fatalf("status %d", status)
	}
	p.serverFixed.Replace(append(p.serverRes, setResource("server-policy", tier(), nil)))
	p.eventually("denial", func() bool {
		r, err := c.Get("http://server/")
		status, _ := body(t, r, err)
		return status == 403
	})
}

func TestStalePooledConnectionIsRetried(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		r.Body.Close()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") // and closes without saying so
	})
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	c := p.httpClient()
	for range 20 {
		r, err := c.Get("http://server/")
		if status, got := body(t, r, err); status != 200 || got != "ok" {
			t.Fatalf("got %d %q", status, got)
		}
	}
}

func TestHTTP10AndCloseDelimited(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n%s until the end", r.Host)
	})
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	r, err := p.httpClient().Get("http://server/")
	if status, got := body(t, r, err); status != 200 || got != "server until the end" {
		t.Errorf("got %d %q", status, got)
	}
	c := p.conn()
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(c)
	if want := "10.96.0.1:80 until the end"; err != nil || !strings.HasSuffix(string(b), "\r\n\r\n"+want) {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestPipelining(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s:%s", r.URL.Path, b)
	}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	c := p.conn()
	fmt.Fprint(c, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"+
		"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nde\r\n0\r\nX-T: 1\r\n\r\nHEAD /4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	br := bufio.NewReader(c)
	for _, want := range []string{"/1:", "/2:abc", "/3:de"} {
		resp, err := http.ReadResponse(br, nil)
		if _, got := body(t, resp, err); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	resp, err := http.ReadResponse(br, &http.Request{Method: "HEAD"})
	if err != nil || resp.ContentLength != 3 || !resp.Close {
		t.Errorf("HEAD: %+v, %v", resp, err)
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("more after the last response: %v", err)
	}
}

func TestAbortedResponseIsAborted(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	r, err := p.httpClient().Get("http://server/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if b, err := io.ReadAll(r.Body); err == nil {
		t.Errorf("truncated response passed for whole: %q", b)
	}
}

func TestDrain(t *testing.T) {
	release, started := make(chan struct{}), make(chan struct{})
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(started)
			<-release
		}
		_, _ = io.WriteString(w, "ok")
	}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	idle := p.conn()
	fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(idle), nil)
	if status, _ := body(t, resp, err); status != 200 {
		t.Fatal(status)
	}
	busy := p.conn()
	fmt.Fprint(busy, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-started
	p.client.Connections.Stop()
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("idle connection: %v", err)
	}
	close(release)
	resp, err = http.ReadResponse(bufio.NewReader(busy), nil)
	if status, got := body(t, resp, err); status != 200 || got != "ok" || !resp.Close {
		t.Errorf("request under way: %d %q close %v", status, got, resp.Close)
	}
	p.eventually("no connection", func() bool { return p.client.Connections.Len() == 0 })
}

// TestFieldsFromOutsideTheMesh: fields that carry identity are ours alone; what
// else a client without a sidecar claims of itself and of proxies before it is
// passed on as a claim, behind which stands the address that was seen.
func TestFieldsFromOutsideTheMesh(t *testing.T) {
	var got atomic.Pointer[http.Header]
	app := httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { h := r.Header.Clone(); got.Store(&h) }))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	c := from(t, "127.0.0.9", p.inbound)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: By=evil;URI="+serverID+"\r\nX_FORWARDED_CLIENT_CERT: evil\r\n"+
		"X-Hauberk-Principal: evil\r\nx_hauberk_denied_by: evil\r\nX-Forwarded_Proto: https\r\nX-Forwarded-For: 1.2.3.4\r\n"+
		"X-Forwarded-Proto: https\r\nX-Forwarded-Host: bank\r\nForwarded: for=1.2.3.4\r\nX-Envoy-Internal: true\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if status, _ := body(t, resp, err); status != 200 {
		t.Fatalf("status %d", status)
	}
	h := *got.Load()
	h.Del("Traceparent")
	want := http.Header{"X-Forwarded-For": {"1.2.3.4", "127.0.0.9"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"bank"},
		"Forwarded": {"for=1.2.3.4"}, "X-Envoy-Internal": {"true"}}
	if d := cmp.Diff(want, h); d != "" {
		t.Error(d)
	}
}
