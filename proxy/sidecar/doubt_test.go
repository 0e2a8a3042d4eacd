package sidecar

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// TestUnreadableRequestsAreDenied: where a rule denies requests, what the strict
// parser can't read and a lenient application could is not passed on as bytes.
func TestUnreadableRequestsAreDenied(t *testing.T) {
	var reached atomic.Int64
	l := listen(t)
	s := &http.Server{ReadHeaderTimeout: 5 * time.Second, Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached.Add(1) })}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })

	rest := " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	for name, tc := range map[string]struct {
		declared hauberkv1.AppProtocol
		sent     string
	}{
		"bytes beyond ASCII": {0, "GET /secret?\xff" + rest},
		"long method":        {0, strings.Repeat("A", 40) + " /secret" + rest},
		"method with digits": {0, "G3T /secret" + rest},
		"not HTTP/2 at all":  {hauberkv1.AppProtocol_APP_PROTOCOL_GRPC, "\x01\x02\x03 /secret" + rest},
		"TLS":                {0, "\x16\x03\x01GET /secret" + rest},
	} {
		for direction, set := range map[string]setup{
			"ingress": {app: l.Addr().String(), protocol: tcp, serverProto: tc.declared,
				ingress: tier(rule("no-secret", deny, get(nil, "/secret")), rule("all", allow))},
			"egress": {app: l.Addr().String(), serverProto: tcp, protocol: tc.declared,
				egress: tier(rule("no-secret", deny, get(nil, "/secret")), rule("all", allow))},
		} {
			t.Run(name+" "+direction, func(t *testing.T) {
				p := newPair(t, set)
				var b []byte
				if c, err := net.Dial("tcp", p.dial); err == nil { // else it was refused already
					defer c.Close()
					_ = c.SetDeadline(time.Now().Add(20 * time.Second))
					fmt.Fprint(c, tc.sent)
					b, _ = io.ReadAll(c)
				}
				if n := reached.Load(); n != 0 || len(b) > 0 && !bytes.HasPrefix(b, []byte("HTTP/1.1 40")) && !bytes.HasSuffix(b, []byte("no HTTP/2 preface")) {
					t.Errorf("the application was reached %d times and answered %q", n, b)
				}
			})
		}
	}
}

// TestSilentConnectionIsCut: a connection that was let through before its
// protocol was known does not outlive a policy that needs to know.
func TestSilentConnectionIsCut(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		fmt.Fprint(c, "!")
		_, _ = io.Copy(io.Discard, c)
	})
	p := newPair(t, setup{app: app, protocol: tcp})
	c := p.conn()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.serverFixed.Replace(append(p.serverRes, setResource("server-policy",
		tier(rule("no-secret", deny, get(nil, "/secret")), rule("all", allow)), nil)))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the connection goes on: %v", err)
	}
}

// TestUpgradedConnectionIsCut: what an Upgrade opened lives no longer than the
// permission for its request.
func TestUpgradedConnectionIsCut(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, br)
	})
	denied := tier(rule("no-ws", deny, get(nil, "/ws")), rule("all", allow))
	for direction, change := range map[string]func(p *pair){
		"ingress": func(p *pair) {
			p.serverFixed.Replace(append(p.serverRes, setResource("server-policy", denied, nil)))
		},
		"egress": func(p *pair) {
			p.clientFixed.Replace(append(p.clientRes, setResource("client-policy", nil, denied)))
		},
	} {
		t.Run(direction, func(t *testing.T) {
			p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
			c := p.conn()
			fmt.Fprint(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
			br := bufio.NewReader(c)
			r, err := http.ReadResponse(br, nil)
			if err != nil || r.StatusCode != 101 {
				t.Fatalf("got %v, %v", r, err)
			}
			fmt.Fprint(c, "x")
			if b, err := br.ReadByte(); err != nil || b != 'x' {
				t.Fatalf("got %q, %v", b, err)
			}
			change(p)
			if _, err := br.ReadByte(); err == nil || isTimeout(err) {
				t.Errorf("the tunnel goes on: %v", err)
			}
		})
	}
}

// TestUnknownPeerIsNotSparedADeny: a Deny by selector holds for pods of which
// the control plane has not told, because they may be the ones it means.
func TestUnknownPeerIsNotSparedADeny(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	byAnybody := &hauberkv1.Rule{Name: "rest", Action: allow, AnyPeer: true}
	for _, unknown := range []bool{false, true} {
		p := newPair(t, setup{app: app, protocol: http1, serverProto: http1, peerUnknown: unknown,
			ingress: tier(&hauberkv1.Rule{Name: "others", Action: deny, Peers: []*hauberkv1.Peer{{PeerSet: "x", PodSelector: &hauberkv1.Selector{
				Requirements: []*hauberkv1.Requirement{{Key: "app", Operator: hauberkv1.Requirement_OPERATOR_IN, Values: []string{"other"}}}}}}}, byAnybody)})
		r, err := p.httpClient().Get("http://server/")
		want := map[bool]int{false: 200, true: 403}[unknown]
		if status, text := body(t, r, err); status != want {
			t.Errorf("unknown %v: got %d %q", unknown, status, text)
		}
	}
}

// TestForeignHandshakeIsPassedOnWhole: what follows a ClientHello at once (early
// data, or bytes that are no TLS at all) is not lost.
func TestForeignHandshakeIsPassedOnWhole(t *testing.T) {
	app := tcpApp(t, func(c net.Conn) {
		b, err := io.ReadAll(c)
		if err == nil {
			_, _ = c.Write(b)
		}
	})
	p := newPair(t, setup{app: app})
	c, err := net.Dial("tcp", p.inbound)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	// A ClientHello of somebody else's TLS, as its first write has it.
	near, far := net.Pipe()
	go func() { _ = tls.Client(near, &tls.Config{ServerName: "x", NextProtos: []string{"h2"}}).Handshake() }()
	hello := make([]byte, 8<<10)
	n, err := far.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	sent := append(hello[:n], bytes.Repeat([]byte("0123456789abcdef"), (4000-n)/16)...)
	_, _ = c.Write(sent)
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(sent), err)
	}
}

// TestSlowHandshakeIsStillOurs: a ClientHello that is late, because a packet was
// lost, still proves an identity where policy asks for one.
func TestSlowHandshakeIsStillOurs(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Client-Cert"))
	}))
	p := newPair(t, setup{app: app, ingress: tier(
		&hauberkv1.Rule{Name: "post", Action: deny, AnyPeer: true, Http: []*hauberkv1.HTTPMatch{get([]string{"POST"}, "/")}},
		&hauberkv1.Rule{Name: "rest", Action: allow, AnyPeer: true})})
	raw, err := net.Dial("tcp", p.inbound)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	// Longer than a plain client is waited for.
	time.Sleep(600 * time.Millisecond)
	c := tls.Client(raw, identity.ClientTLS(p.authority.Workload(t, "bank", "client", clientUID),
		identity.Expect{ID: spiffeid.RequireFromString(serverID), PodUID: serverUID}, names.ALPNTCP))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "URI="+clientID) {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestLateHandshakeOnDeclaredTCP: where the server may speak first and everybody
// may connect, a client that was silent is passed on, and so is a ClientHello
// that comes after all: it proves nothing to anybody. Where the port asks for
// identity, or policy does, it is waited for or denied.
func TestLateHandshakeOnDeclaredTCP(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup setup
		want  string // what the application reads first; empty if it is not reached
	}{
		{"everybody may", setup{serverProto: tcp}, "\x16\x03\x01"},
		{"identity is asked for by policy", setup{serverProto: tcp, ingress: tier(rule("peers", allow))}, ""},
		{"identity is asked for by the port", setup{serverProto: tcp, mtls: hauberkv1.MTLSMode_MTLS_MODE_STRICT}, "application data"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			first := make(chan string, 1)
			tc.setup.app = tcpApp(t, func(c net.Conn) {
				b := make([]byte, 64)
				if n, err := c.Read(b); err == nil {
					first <- string(b[:n])
				}
			})
			p := newPair(t, tc.setup)
			raw, err := net.Dial("tcp", p.inbound)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
			if tc.setup.mtls == 0 {
				// Whatever becomes of a silent client has become of it.
				p.eventually("the silent client is judged", func() bool {
					live := p.server.Connections.All()
					return len(live) == 1 && live[0].Protocol() != "" || strings.Contains(p.serverAccess.String(), `"flag":"denied"`)
				})
			} else {
				time.Sleep(600 * time.Millisecond) // longer than a plain client is waited for
			}
			c := tls.Client(raw, identity.ClientTLS(p.authority.Workload(t, "bank", "client", clientUID),
				identity.Expect{ID: spiffeid.RequireFromString(serverID), PodUID: serverUID}, names.ALPNTCP))
			_, err = io.WriteString(c, "application data")
			if (err == nil) != (tc.want == "application data") {
				t.Errorf("handshake: %v", err)
			}
			if tc.want == "" {
				p.eventually("no connection", func() bool { return p.server.Connections.Len() == 0 })
				if len(first) != 0 {
					t.Errorf("the application was reached with %q", <-first)
				}
				return
			}
			if got := <-first; !strings.HasPrefix(got, tc.want) {
				t.Errorf("the application read %q, want %q", got, tc.want)
			}
			if tc.want != "application data" && strings.Contains(p.serverAccess.String(), clientID) {
				t.Error("a handshake that nobody answered counts as an identity")
			}
		})
	}
}
