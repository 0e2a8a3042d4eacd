package sidecar

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/proxy/telemetry"
)

// h2cApp is a real HTTP/2 application without TLS.
func h2cApp(t testing.TB, h http.Handler) string {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

// h2Client speaks HTTP/2 by prior knowledge to the client's sidecar.
func (p *pair) h2Client() *http.Client {
	c := p.httpClient()
	tr := c.Transport.(*http.Transport)
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetUnencryptedHTTP2(true)
	return c
}

// TestHTTP2Requests: what arrives is what was authorised, with our own fields
// and nobody's pretence.
func TestHTTP2Requests(t *testing.T) {
	type seen struct {
		Method, URI, Host, Proto, Body     string
		XFCC, XFF, Hauberk, Trace, Trailer string
	}
	var got atomic.Pointer[seen]
	var reached atomic.Int64
	app := h2cApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		w.Header().Set("X-Hauberk-Denied-By", "nobody")
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusCreated)
		n, _ := io.Copy(w, io.TeeReader(io.LimitReader(r.Body, 16), io.Discard))
		rest, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", http.StatusText(http.StatusOK))
		got.Store(&seen{r.Method, r.RequestURI, r.Host, r.Proto, http.StatusText(int(min(n+rest, 200))), r.Header.Get("X-Forwarded-Client-Cert"),
			r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Hauberk-Role"), r.Header.Get("Traceparent")[:35], r.Trailer.Get("X-End")})
	}))
	p := newPair(t, setup{app: app, ingress: tier(rule("no-secret", deny, get(nil, "/secret")), rule("all", allow))})
	c := p.h2Client()
	send := func(method, target string, body io.Reader) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://Server.Bank.svc:80"+target, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/kube-system/sa/admin")
		r.Header.Set("X-Hauberk-Role", "admin")
		r.Header.Set("X-Forwarded-For", "1.2.3.4")
		r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
		r.Trailer = http.Header{"X-End": {"whole"}}
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MB: more than any window
	r := send("POST", "/a//b/../%7Ec?q=1", io.MultiReader(bytes.NewReader(large)))
	code, text := body(t, r, nil)
	if code != 201 || text != string(large) || r.Trailer.Get("X-Sum") != "OK" || r.ProtoMajor != 2 || r.Header.Get("X-Hauberk-Denied-By") != "" {
		t.Errorf("%d, %d bytes, trailer %q, header %q", code, len(text), r.Trailer, r.Header)
	}
	want := &seen{"POST", "/a/~c?q=1", "server.bank.svc:80", "HTTP/2.0", "OK", "By=" + serverID + ";URI=" + clientID, "1.2.3.4", "",
		"00-0af7651916cd43dd8448eb211c80319c", "whole"}
	if diff := cmp.Diff(want, got.Load()); diff != "" {
		t.Error(diff)
	}

	reached.Store(0)
	for target, want := range map[string]int{"/secret": 403, "/a/..//%73ecret/x": 403, "/a%2Fb": 400, "/a\\b": 400, "/..;x=/secret": 400} {
		r := &http.Request{Method: "GET", URL: mustURL(t, target), Host: "server"}
		response, err := c.Do(r.WithContext(t.Context()))
		code, text := body(t, response, err)
		if code != want || want == 403 && (text != "hauberk: denied by MeshPolicy bank/api rule no-secret (tier default), ingress\n" ||
			response.Header.Get("X-Hauberk-Denied-By") != "MeshPolicy bank/api") {
			t.Errorf("%s: %d %q, want %d", target, code, text, want)
		}
	}
	response := send("HEAD", "/secret", nil)
	if code, text := body(t, response, nil); code != 403 || text != "" {
		t.Errorf("HEAD: %d %q", code, text)
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("the application was reached %d times", n)
	}
}

// raw is an HTTP/2 client of frames.
type raw struct {
	t testing.TB
	*http2.Framer
	enc   *hpack.Encoder
	block bytes.Buffer
}

func newRaw(t testing.TB, c net.Conn) *raw {
	t.Helper()
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	r := &raw{t: t, Framer: http2.NewFramer(c, c)}
	r.enc = hpack.NewEncoder(&r.block)
	r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := r.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *raw) request(id uint32, end bool, fields ...string) {
	r.t.Helper()
	r.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	if err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: r.block.Bytes()}); err != nil {
		r.t.Fatal(err)
	}
}

// answer is a stream's status, or the code it was reset with.
func (r *raw) answer(id uint32) string {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				return f.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return f.ErrCode.String()
			}
		}
	}
}

// TestHTTP2Ambiguous: what could be read in two ways gets 400 before policy.
func TestHTTP2Ambiguous(t *testing.T) {
	app := h2cApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) }))
	p := newPair(t, setup{app: app})
	for name, tc := range map[string]struct {
		fields []string
		want   string
	}{
		"host alone":             {[]string{":method", "GET", ":scheme", "http", ":path", "/", "host", "a"}, "200"},
		"no host":                {[]string{":method", "GET", ":scheme", "http", ":path", "/"}, "200"},
		"the same host twice":    {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "host", "A."}, "200"},
		"authority against host": {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "host", "b"}, "400"},
		"user information":       {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "b@a"}, "400"},
		"absolute path":          {[]string{":method", "GET", ":scheme", "http", ":path", "http://b/", ":authority", "a"}, "400"},
		"no leading slash":       {[]string{":method", "POST", ":scheme", "http", ":path", "s/m", ":authority", "a"}, "400"},
		"fragment":               {[]string{":method", "GET", ":scheme", "http", ":path", "/a#b", ":authority", "a"}, "400"},
		"space in the path":      {[]string{":method", "GET", ":scheme", "http", ":path", "/a b", ":authority", "a"}, "400"},
		"asterisk":               {[]string{":method", "GET", ":scheme", "http", ":path", "*", ":authority", "a"}, "400"},
		"scheme":                 {[]string{":method", "GET", ":scheme", "gopher", ":path", "/", ":authority", "a"}, "400"},
		"expectation":            {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "expect", "money"}, "417"},
		"connection field":       {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "connection", "close"}, "PROTOCOL_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, p.conn())
			r.request(1, true, tc.fields...)
			if got := r.answer(1); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestCookiesInPieces: a rule about a cookie sees it whole.
func TestCookiesInPieces(t *testing.T) {
	app := h2cApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	m := &hauberkv1.HTTPMatch{Headers: []*hauberkv1.HeaderMatch{{Name: "cookie", Values: []string{"a=1; admin=1"}}}}
	p := newPair(t, setup{app: app, ingress: tier(rule("no-admin", deny, m), rule("all", allow))})
	r := newRaw(t, p.conn())
	r.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "cookie", "a=1", "cookie", "admin=1")
	if got := r.answer(1); got != "403" {
		t.Errorf("got %s", got)
	}
}

// frameApp is an application of frames: serve is called for each connection.
func frameApp(t testing.TB, serve func(n int64, r *raw)) string {
	t.Helper()
	var n atomic.Int64
	return tcpApp(t, func(c net.Conn) {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c, preface); err != nil {
			return
		}
		r := &raw{t: t, Framer: http2.NewFramer(c, c)}
		r.enc = hpack.NewEncoder(&r.block)
		r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		if r.WriteSettings() != nil {
			return
		}
		serve(n.Add(1), r)
		_, _ = io.Copy(io.Discard, c)
	})
}

// TestHTTP2SentAgain: what the application says it has not acted on is sent
// again, body and all; what it may have acted on is not.
func TestHTTP2SentAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		first func(r *raw, id uint32)
		want  string
	}{
		"refused": {func(r *raw, id uint32) { _ = r.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, "200"},
		"going away": {func(r *raw, _ uint32) {
			_ = r.WriteGoAway(0, http2.ErrCodeNo, nil)
		}, "200"},
		"reset by the application": {func(r *raw, id uint32) { _ = r.WriteRSTStream(id, http2.ErrCodeEnhanceYourCalm) }, "ENHANCE_YOUR_CALM"},
	} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int64
			var bodies sync.Map
			app := frameApp(t, func(n int64, r *raw) {
				for {
					f, err := r.ReadFrame()
					if err != nil {
						return
					}
					d, ok := f.(*http2.DataFrame)
					if !ok || !d.StreamEnded() {
						continue
					}
					bodies.Store(string(d.Data()), true)
					if tries.Add(1) == 1 {
						tc.first(r, d.StreamID)
						continue
					}
					r.request(d.StreamID, true, ":status", "200")
				}
			})
			p := newPair(t, setup{app: app})
			r := newRaw(t, p.conn())
			r.request(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
			if err := r.WriteData(1, true, []byte("once")); err != nil {
				t.Fatal(err)
			}
			if got := r.answer(1); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			bodies.Range(func(k, _ any) bool {
				if k != "once" {
					t.Errorf("body %q", k)
				}
				return true
			})
		})
	}
}

// TestHTTP2ToOther: an application that does not speak HTTP/2 is not spoken to
// in another way.
func TestHTTP2ToOther(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method != "PRI" { // which is how it reads the preface
			t.Errorf("the application got %s", r.Method)
		}
	}))
	p := newPair(t, setup{app: app})
	r := newRaw(t, p.conn())
	r.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
	if got := r.answer(1); got != "502" {
		t.Errorf("got %s", got)
	}
}

// TestHTTP2ClientResets: what the client gives up the application stops too.
func TestHTTP2ClientResets(t *testing.T) {
	ended := make(chan error, 1)
	app := h2cApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		ended <- r.Context().Err()
	}))
	p := newPair(t, setup{app: app})
	r := newRaw(t, p.conn())
	r.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
	if got := r.answer(1); got != "200" {
		t.Fatalf("got %s", got)
	}
	if err := r.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the application was not told")
	}
	p.eventually("access log", func() bool { return strings.Contains(p.serverAccess.String(), `"flag":"client_gone"`) })
}

// TestGRPCStreamsAreRechecked: a change of policy ends the streams that it does
// not allow, says why, and leaves the others on the same connection.
func TestGRPCStreamsAreRechecked(t *testing.T) {
	for _, side := range []string{"ingress", "egress"} {
		t.Run(side, func(t *testing.T) {
			app, _ := grpcApp(t)
			p := newPair(t, setup{app: app})
			conn := p.grpcConn()
			c := testpb.NewTestServiceClient(conn)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			denied, err := c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			allowed, err := c.StreamingInputCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			ping := &testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}}
			if err := errors.Join(denied.Send(ping), allowed.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: []byte("1")}})); err != nil {
				t.Fatal(err)
			}
			if _, err := denied.Recv(); err != nil {
				t.Fatal(err)
			}
			rules := tier(grpcRule("no", deny, "FullDuplexCall"), rule("all", allow))
			if side == "ingress" {
				p.serverRes[2] = setResource("server-policy", rules, nil)
				p.serverFixed.Replace(p.serverRes)
			} else {
				p.clientRes[2] = setResource("client-policy", nil, rules)
				p.clientFixed.Replace(p.clientRes)
			}
			_, err = denied.Recv()
			want := "hauberk: denied by MeshPolicy bank/api rule no (tier default), " + side
			if s, _ := status.FromError(err); s.Code() != codes.PermissionDenied || s.Message() != want {
				t.Errorf("the denied stream: %v", err)
			}
			if err := allowed.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: []byte("23")}}); err != nil {
				t.Error(err)
			}
			if r, err := allowed.CloseAndRecv(); err != nil || r.GetAggregatedPayloadSize() != 3 {
				t.Errorf("the allowed stream: %v, %v", r, err)
			}
		})
	}
}

// TestGRPCDrain: draining either side fails no call.
func TestGRPCDrain(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			app, _ := grpcApp(t)
			p := newPair(t, setup{app: app, quiet: true})
			core, direction := p.client, telemetry.Outbound
			if side == "server" {
				core, direction = p.server, telemetry.Inbound
			}
			conn := p.grpcConn()
			c := testpb.NewTestServiceClient(conn)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			long, err := c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			ping := &testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}}
			if err := long.Send(ping); err != nil {
				t.Fatal(err)
			}
			if _, err := long.Recv(); err != nil {
				t.Fatal(err)
			}
			var before []any
			for _, l := range core.Connections.All() {
				if l.Direction == direction {
					before = append(before, l)
				}
			}
			var calls, failed atomic.Int64
			var stop atomic.Bool
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for !stop.Load() {
						if _, err := c.EmptyCall(ctx, &testpb.Empty{}); err != nil {
							failed.Add(1)
							t.Error(err)
							return
						}
						calls.Add(1)
					}
				})
			}
			p.eventually("calls", func() bool { return calls.Load() > 50 })
			core.Connections.Drain()
			core.Upstreams.Drain()
			n := calls.Load()
			p.eventually("calls after the drain began", func() bool { return calls.Load() > n+200 })
			// The stream that was open goes on, and then its connection ends.
			if err := long.Send(ping); err != nil {
				t.Error(err)
			}
			if _, err := long.Recv(); err != nil {
				t.Error(err)
			}
			if err := long.CloseSend(); err != nil {
				t.Error(err)
			}
			if _, err := long.Recv(); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			p.eventually("the drained connections end", func() bool {
				for _, l := range core.Connections.All() {
					for _, b := range before {
						if any(l) == b {
							return false
						}
					}
				}
				return true
			})
			stop.Store(true)
			wg.Wait()
			core.Connections.Stop()
			p.eventually("all connections end", func() bool { return core.Connections.Len() == 0 })
			if failed.Load() != 0 {
				t.Errorf("%d of %d calls failed", failed.Load(), calls.Load())
			}
		})
	}
}

// TestGRPCSpread: the calls of one connection go to all endpoints.
func TestGRPCSpread(t *testing.T) {
	var counts [2]atomic.Int64
	var endpoints []*hauberkv1.DestinationEndpoint
	first := ""
	for i := range counts {
		app, _ := grpcApp(t, grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			counts[i].Add(1)
			return h(ctx, r)
		}))
		first = app
		a := netip.MustParseAddrPort(app)
		endpoints = append(endpoints, &hauberkv1.DestinationEndpoint{Address: a.Addr().String(), Port: uint32(a.Port()), Ready: true, Namespace: "bank", WorkloadName: "server"})
	}
	p := newPair(t, setup{app: first, protocol: h2Proto})
	p.clientRes[3].GetDestination().Endpoints = endpoints
	p.clientFixed.Replace(p.clientRes)
	c := testpb.NewTestServiceClient(p.grpcConn())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p.eventually("both endpoints are used", func() bool {
		if _, err := c.EmptyCall(ctx, &testpb.Empty{}); err != nil {
			t.Fatal(err)
		}
		return counts[0].Load() > 0 && counts[1].Load() > 0
	})
}

func mustURL(t testing.TB, target string) *url.URL {
	t.Helper()
	path, query, _ := strings.Cut(target, "?")
	return &url.URL{Scheme: "http", Host: "server", Opaque: "//server" + path, RawQuery: query}
}
