package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const wait = 5 * time.Second

// code is the exit code that an error gives.
func code(err error) int {
	var failure *Failure
	switch {
	case err == nil:
		return OK
	case errors.As(err, &failure):
		return failure.Code
	default:
		return OtherFailed
	}
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// serve runs a server for the length of a test and reports how it ended.
func serve(t *testing.T, server func(ctx context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- server(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
}

// refusing is an address where nothing listens.
func refusing(t *testing.T) string {
	listener := listenTCP(t)
	listener.Close()
	return listener.Addr().String()
}

// behaving is an address where each connection is treated by one function.
func behaving(t *testing.T, treat func(net.Conn)) string {
	listener := listenTCP(t)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			treat(conn)
		}
	}()
	return listener.Addr().String()
}

func closing(conn net.Conn) { conn.Close() }

func TestHTTPCodes(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/denied" {
			http.Error(w, "denied by policy a/b", http.StatusForbidden)
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Etcd-Index", "7")
		w.Header().Set("X-Quiet", "1")
		io.WriteString(w, r.Method+" "+r.Host+" "+r.Header.Get("K")+" "+string(body))
	}))
	defer server.Close()
	silent := behaving(t, func(conn net.Conn) { t.Cleanup(func() { conn.Close() }) })
	for _, test := range []struct {
		name     string
		want     HTTPRequest
		code     int
		has, not []string
	}{
		{"works", HTTPRequest{Method: "PUT", URL: server.URL, Headers: []string{"k=v", "Host: bank"}, Body: "b"}, OK, []string{"HTTP/1.1 200 OK", "X-Etcd-Index: 7", "PUT bank v b\n"}, []string{"X-Quiet"}},
		{"all headers", HTTPRequest{Method: "GET", URL: server.URL, AllHeaders: true}, OK, []string{"X-Quiet: 1"}, nil},
		{"denied", HTTPRequest{Method: "GET", URL: server.URL + "/denied"}, BadStatus, []string{"HTTP/1.1 403 Forbidden", "denied by policy a/b"}, nil},
		{"refused", HTTPRequest{Method: "GET", URL: "http://" + refusing(t)}, NoConnect, []string{"refused"}, nil},
		{"silent", HTTPRequest{Method: "GET", URL: "http://" + silent, Timeout: 50 * time.Millisecond}, Timeout, []string{"timeout"}, nil},
		{"closed", HTTPRequest{Method: "POST", URL: "http://" + behaving(t, closing), Body: "x"}, NoAnswer, []string{"closed"}, nil},
		{"bad header", HTTPRequest{Method: "GET", URL: server.URL, Headers: []string{"nothing"}}, Usage, nil, nil},
		{"bad URL", HTTPRequest{Method: "GET", URL: "http://a b"}, Usage, nil, nil},
		{"several", HTTPRequest{Method: "GET", URL: server.URL, Count: 3}, OK, []string{"summary ok=3 failed=0"}, nil},
		{"several denied", HTTPRequest{Method: "GET", URL: server.URL + "/denied", Count: 2, Reuse: true}, BadStatus, []string{"summary ok=0 failed=2"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.want.Timeout == 0 {
				test.want.Timeout = wait
			}
			var out bytes.Buffer
			err := HTTP(t.Context(), &out, test.want)
			if got := code(err); got != test.code {
				t.Errorf("code %d (%v), want %d", got, err, test.code)
			}
			for _, want := range test.has {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output lacks %q:\n%s", want, &out)
				}
			}
			for _, no := range test.not {
				if strings.Contains(out.String(), no) {
					t.Errorf("output holds %q:\n%s", no, &out)
				}
			}
		})
	}
}

func TestHTTPJSON(t *testing.T) {
	listener := listenTCP(t)
	serve(t, func(ctx context.Context) error { return ServeHTTP(ctx, listener) })
	var out bytes.Buffer
	err := HTTP(t.Context(), &out, HTTPRequest{Method: "GET", URL: "http://" + listener.Addr().String() + "/p?q=1", Timeout: wait, JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	var result httpResult
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatal(err)
	}
	var echoed struct{ Method, Path, Query string }
	if err := json.Unmarshal([]byte(result.Body), &echoed); err != nil {
		t.Fatal(err)
	}
	if result.Status != 200 || result.Code != OK || result.Remote != listener.Addr().String() || echoed.Method != "GET" || echoed.Path != "/p" || echoed.Query != "q=1" {
		t.Errorf("%+v, %+v", result, echoed)
	}
}

func TestTCP(t *testing.T) {
	plain, bannered := listenTCP(t), listenTCP(t)
	serve(t, func(ctx context.Context) error { return ServeTCP(ctx, plain, "") })
	serve(t, func(ctx context.Context) error { return ServeTCP(ctx, bannered, "220 ready") })
	silent := behaving(t, func(conn net.Conn) { t.Cleanup(func() { conn.Close() }) })
	for _, test := range []struct {
		name string
		want TCPRequest
		code int
		has  string
	}{
		{"connect", TCPRequest{Address: plain.Addr().String()}, OK, "connected " + plain.Addr().String()},
		{"echo", TCPRequest{Address: plain.Addr().String(), Send: "hello", Line: true}, OK, " hello\n"},
		{"server first", TCPRequest{Address: bannered.Addr().String(), Line: true}, OK, "220 ready\n"},
		{"to the end", TCPRequest{Address: bannered.Addr().String(), Send: "bye", EOF: true}, OK, " bye\n"},
		{"refused", TCPRequest{Address: refusing(t)}, NoConnect, ""},
		{"closed", TCPRequest{Address: behaving(t, closing), Line: true}, NoAnswer, ""},
		{"closed at the end", TCPRequest{Address: behaving(t, closing), EOF: true}, NoAnswer, ""},
		{"silent", TCPRequest{Address: silent, Line: true, Timeout: 50 * time.Millisecond}, Timeout, ""},
		{"no name", TCPRequest{Address: "no-such-name.invalid:1"}, NoName, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.want.Timeout == 0 {
				test.want.Timeout = wait
			}
			var out bytes.Buffer
			err := TCP(t.Context(), &out, test.want)
			if got := code(err); got != test.code {
				t.Errorf("code %d (%v), want %d", got, err, test.code)
			}
			if !strings.Contains(out.String(), test.has) {
				t.Errorf("output lacks %q:\n%s", test.has, &out)
			}
		})
	}
}

func TestGRPCHealth(t *testing.T) {
	listener := listenTCP(t)
	serve(t, func(ctx context.Context) error { return ServeGRPC(ctx, listener) })
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", answer, err)
	}
}

func TestUDP(t *testing.T) {
	listen := func() net.PacketConn {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	echoing, silent, gone := listen(), listen(), listen()
	gone.Close()
	serve(t, func(ctx context.Context) error { return ServeUDP(ctx, echoing) })
	for _, test := range []struct {
		name    string
		address net.Addr
		timeout time.Duration
		code    int
		has     string
	}{
		{"echo", echoing.LocalAddr(), wait, OK, " ping\n"},
		{"silent", silent.LocalAddr(), 50 * time.Millisecond, Timeout, ""},
		{"refused", gone.LocalAddr(), wait, NoConnect, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			err := UDP(t.Context(), &out, UDPRequest{Address: test.address.String(), Send: "ping", Timeout: test.timeout, Tries: 2})
			if got := code(err); got != test.code {
				t.Errorf("code %d (%v), want %d", got, err, test.code)
			}
			if !strings.Contains(out.String(), test.has) {
				t.Errorf("output lacks %q:\n%s", test.has, &out)
			}
		})
	}
}

func TestDNS(t *testing.T) {
	var out bytes.Buffer
	if err := DNS(t.Context(), &out, "localhost", wait); err != nil || !strings.Contains(out.String(), "127.0.0.1") {
		t.Errorf("localhost: %v, %q", err, &out)
	}
	if err := DNS(t.Context(), &out, "no-such-name.invalid", wait); code(err) != NoName {
		t.Errorf("a name that does not exist: %v", err)
	}
}
