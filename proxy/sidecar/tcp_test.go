package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

func TestServerFirst(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		fmt.Fprint(c, "220 hello\r\n")
		_, _ = io.Copy(c, c)
	})
	for name, proto := range map[string]hauberkv1.AppProtocol{"declared": tcp, "detected": 0} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, setup{app: app, protocol: proto, serverProto: proto})
			c := p.conn()
			b := make([]byte, 11)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "220 hello\r\n" {
				t.Fatalf("got %q, %v", b, err)
			}
			fmt.Fprint(c, "EHLO x\r\n")
			if _, err := io.ReadFull(c, b[:8]); err != nil || string(b[:8]) != "EHLO x\r\n" {
				t.Fatalf("got %q, %v", b[:8], err)
			}
		})
	}
}

func TestHalfCloseAndBulk(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		b, err := io.ReadAll(c) // until the client's end
		if err != nil {
			return
		}
		_, _ = c.Write(b)
	})
	for _, plain := range []bool{false, true} {
		p := newPair(t, setup{app: app, protocol: tcp, plain: plain})
		c := p.conn()
		sent := bytes.Repeat([]byte{0, 1, 2, 3, 0xff}, 1<<20)
		done := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			done <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err := errors.Join(err, <-done); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("plain %v: got %d bytes of %d, %v", plain, len(got), len(sent), err)
		}
	}
}

func TestApplicationsOwnTLS(t *testing.T) {
	other := identitytest.NewAuthority(t, "other.example")
	config := identity.ServerTLS(other.Workload(t, "a", "b", serverUID))
	config.ClientAuth, config.VerifyConnection = tls.NoClientCert, nil
	app := tcpApp(t, func(c net.Conn) {
		s := tls.Server(c, config)
		_, _ = io.Copy(s, s)
	})
	for _, plain := range []bool{false, true} {
		p := newPair(t, setup{app: app, plain: plain})
		c := tls.Client(p.conn(), &tls.Config{InsecureSkipVerify: true})
		fmt.Fprint(c, "hello")
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("plain %v: got %q, %v", plain, b, err)
		}
	}
}

func TestPlaintext(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "xfcc="+r.Header.Get("X-Forwarded-Client-Cert"))
	}))
	for _, tc := range []struct {
		name string
		s    setup
		ok   bool
	}{
		{"permissive", setup{}, true},
		{"strict", setup{mtls: hauberkv1.MTLSMode_MTLS_MODE_STRICT}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.s.app, tc.s.plain, tc.s.protocol, tc.s.serverProto = app, true, http1, http1
			p := newPair(t, tc.s)
			r, err := p.httpClient().Get("http://server/")
			status, got := body(t, r, err)
			if tc.ok != (status == 200 && got == "xfcc=") {
				t.Errorf("got %d %q", status, got)
			}
			if !tc.ok {
				p.eventually("reason in the log", func() bool { return strings.Contains(p.log.String(), "STRICT") })
			}
		})
	}
}

// TestPlainPeersHaveNoIdentity: a rule that wants a principal matches no plain
// client, whatever its address says.
func TestPlainPeersHaveNoIdentity(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	byPrincipal := tier(&hauberkv1.Rule{Name: "id", Action: allow, Peers: []*hauberkv1.Peer{{Principals: []string{clientID}}}})
	for _, plain := range []bool{false, true} {
		p := newPair(t, setup{app: app, plain: plain, protocol: http1, serverProto: http1, ingress: byPrincipal})
		r, err := p.httpClient().Get("http://server/")
		want := map[bool]int{false: 200, true: 403}[plain]
		if status, _ := body(t, r, err); status != want {
			t.Errorf("plain %v: status %d, want %d", plain, status, want)
		}
	}
}

// oneByte writes a byte at a time, as a hostile or slow network may.
type oneByte struct{ net.Conn }

func (c oneByte) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestFragmentedHandshakeIsStillOurs(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Client-Cert"))
	}))
	p := newPair(t, setup{app: app, mtls: hauberkv1.MTLSMode_MTLS_MODE_STRICT})
	raw, err := net.Dial("tcp", p.inbound)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	config := identity.ClientTLS(p.authority.Workload(t, "bank", "client", clientUID),
		identity.Expect{ID: spiffeid.RequireFromString(serverID), PodUID: serverUID}, names.ALPNTCP)
	// The hint says TCP and is not believed: the bytes are HTTP.
	c := tls.Client(oneByte{raw}, config)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "URI="+clientID) {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestForeignCertificateIsRefused(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) { t.Error("the application was reached") })
	p := newPair(t, setup{app: app})
	other := identitytest.NewAuthority(t, "")
	for name, source := range map[string]*identity.Source{
		"other root": other.Source(t, identity.Peer{ID: spiffeid.RequireFromString(clientID), PodUID: clientUID}, p.authority),
	} {
		raw, err := net.Dial("tcp", p.inbound)
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, identity.ClientTLS(source, identity.Expect{ID: spiffeid.RequireFromString(serverID)}, names.ALPNTCP))
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = io.ReadAll(c)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		c.Close()
	}
}

func TestNotOfTheMesh(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	p := newPair(t, setup{app: app})
	to := netip.MustParseAddrPort(app)
	p.target.Store(&to)
	c := p.conn()
	fmt.Fprint(c, "plain")
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "plain" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestControlPlaneAway: what was told goes on, what was never told is refused.
func TestControlPlaneAway(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	c := p.httpClient()
	r, err := c.Get("http://server/")
	if status, _ := body(t, r, err); status != 200 {
		t.Fatalf("status %d", status)
	}
	p.client.Directory.Bind(silent{})
	p.server.Directory.Bind(silent{})
	c.CloseIdleConnections()
	r, err = c.Get("http://server/")
	if status, _ := body(t, r, err); status != 200 {
		t.Errorf("a known destination: status %d", status)
	}
	to := netip.MustParseAddrPort(app)
	p.target.Store(&to)
	conn := p.conn()
	if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
		t.Errorf("an unknown destination was not refused: %d, %v", n, err)
	}
}

type silent struct{}

func (silent) Subscribe(hauberkv1.ResourceType, ...string)   {}
func (silent) Unsubscribe(hauberkv1.ResourceType, ...string) {}

func TestLiveTCPIsCut(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	p := newPair(t, setup{app: app, protocol: tcp, serverProto: tcp})
	c := p.conn()
	fmt.Fprint(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.serverFixed.Replace(append(p.serverRes, setResource("server-policy", tier(), nil)))
	start := time.Now()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	t.Logf("cut after %s", time.Since(start))
}

func TestFailedEndpointIsNotTheEnd(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	dead := listen(t)
	dead.Close()
	at := netip.MustParseAddrPort(dead.Addr().String())
	for _, r := range p.clientRes {
		if d := r.GetDestination(); d != nil {
			d.Endpoints = append(d.Endpoints, &hauberkv1.DestinationEndpoint{Address: at.Addr().String(), Port: uint32(at.Port()),
				PodUid: "44444444-4444-4444-4444-444444444444", SpiffeId: serverID, Ready: true})
			r.Version = "2"
		}
	}
	p.clientFixed.Replace(p.clientRes)
	for range 30 {
		r, err := p.httpClient().Post("http://server/", "", strings.NewReader("x"))
		if status, text := body(t, r, err); status != 200 {
			t.Fatalf("got %d %q", status, text)
		}
	}
}

func TestDetectionHoldsWherePolicyNeedsRequests(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		fmt.Fprint(c, "banner")
		_, _ = io.Copy(io.Discard, c)
	})
	p := newPair(t, setup{app: app, protocol: tcp, ingress: tier(rule("no-delete", deny, get([]string{"DELETE"}, "/")), rule("all", allow))})
	c := p.conn()
	_ = c.SetReadDeadline(time.Now().Add(700 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		t.Errorf("the server was heard before the client's protocol was known: %d, %v", n, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	// What a lenient server takes for a DELETE is not passed on as bytes.
	fmt.Fprint(c, "\r\ndelete / HTTP/1.1\r\nHost: x\r\n\r\n")
	b, _ := io.ReadAll(c)
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 400")) {
		t.Errorf("got %q", b)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
