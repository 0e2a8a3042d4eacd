package differential

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// seen is a request as a back end saw it, or one that it refused by itself.
type seen struct {
	Method  string  `json:"method"`
	Target  string  `json:"target"`
	Host    string  `json:"host"`
	Body    *string `json:"body"` // base64; nil when the back end can't tell
	Upgrade string  `json:"upgrade"`
	Status  int     `json:"status"`
	Refused string  `json:"refused"`
	Coded   bool    `json:"coded"` // it was refused for its transfer coding
}

// journal is what one process tells in JSON lines.
type journal[T any] struct {
	mu      sync.Mutex
	entries []T           // guarded by mu
	more    chan struct{} // closed and replaced with each entry; guarded by mu
}

func newJournal[T any]() *journal[T] { return &journal[T]{more: make(chan struct{})} }

func (j *journal[T]) add(e T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, e)
	close(j.more)
	j.more = make(chan struct{})
}

// until takes all entries up to the first that is the last one.
func (j *journal[T]) until(t fatal, what string, last func(T) bool) []T {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for checked := 0; ; {
		j.mu.Lock()
		for ; checked < len(j.entries); checked++ {
			if last(j.entries[checked]) {
				taken := j.entries[:checked]
				j.entries = append([]T(nil), j.entries[checked+1:]...)
				j.mu.Unlock()
				return taken
			}
		}
		more := j.more
		j.mu.Unlock()
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("%s was not told within 20 s", what)
		}
	}
}

// fatal is what testing.T and rapid.T share.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// read adds each line of r that is JSON for which keep holds.
func read[T any](r io.Reader, j *journal[T], keep func([]byte) bool) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var e T
		if keep(s.Bytes()) && json.Unmarshal(s.Bytes(), &e) == nil {
			j.add(e)
		}
	}
}

// backend is a real HTTP server that journals what it sees.
type backend struct {
	name  string
	start func(t *testing.T, at netip.AddrPort, j *journal[seen])
	// upgrades says that it accepts Upgrade and CONNECT with an echo.
	upgrades bool
}

func backends() []backend {
	return []backend{
		{name: "go", start: startGo, upgrades: true},
		{name: "node", upgrades: true, start: func(t *testing.T, at netip.AddrPort, j *journal[seen]) {
			startProcess(t, j, nil, "node", "testdata/backend.js", port(at))
		}},
		{name: "gunicorn", start: func(t *testing.T, at netip.AddrPort, j *journal[seen]) {
			startProcess(t, j, []string{"PYTHONDONTWRITEBYTECODE=1"}, "/usr/bin/gunicorn", "--chdir", "testdata", "--bind", at.String(),
				"--worker-class", "gthread", "--threads", "8", "--keep-alive", "60", "--worker-tmp-dir", t.TempDir(), "wsgi")
		}},
		{name: "plain", start: func(t *testing.T, at netip.AddrPort, j *journal[seen]) {
			startProcess(t, j, nil, "/usr/bin/python3", "testdata/plain.py", port(at))
		}},
		{name: "nginx", start: startNginx},
	}
}

func port(a netip.AddrPort) string { return fmt.Sprint(a.Port()) }

// nextPort is below the ports that the kernel gives to who asks for any, so that
// no connection takes one before its listener does.
var nextPort atomic.Uint32

// freePort is an address that nobody listens on now.
func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	const first, count = 20000, 12000
	// A program that is being started has our sockets until it is itself.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for range count {
		port := first + (uint32(os.Getpid())*97+nextPort.Add(1))%count
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	}
	t.Fatalf("no free port between %d and %d", first, first+count)
	return netip.AddrPort{}
}

// startProcess runs a program whose standard output is its journal.
func startProcess(t *testing.T, j *journal[seen], env []string, name string, args ...string) {
	t.Helper()
	run(t, env, func(r io.Reader) { read(r, j, func(b []byte) bool { return bytes.HasPrefix(b, []byte("{")) }) }, name, args...)
}

// run starts a program, hands its output to out, and ends it with the test.
func run(t *testing.T, env []string, out func(io.Reader), name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	done := make(chan struct{})
	go func() { defer close(done); out(stdout); _, _ = io.Copy(io.Discard, stdout) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		stop := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		<-done
		_ = cmd.Wait()
		stop.Stop()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("%s: %s", name, stderr.String())
		}
	})
	return cmd
}

func startGo(t *testing.T, at netip.AddrPort, j *journal[seen]) {
	t.Helper()
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		body := base64.StdEncoding.EncodeToString(b)
		e := seen{Method: r.Method, Target: r.RequestURI, Host: r.Host, Body: &body, Upgrade: r.Header.Get("Upgrade")}
		j.add(e)
		if r.Method == http.MethodConnect || e.Upgrade != "" {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			if e.Upgrade != "" {
				fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", e.Upgrade)
			} else {
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n\r\n")
			}
			_, _ = io.Copy(conn, rw)
			return
		}
		switch {
		case strings.HasPrefix(r.RequestURI, "/ok/empty"):
			w.WriteHeader(204)
		case strings.HasPrefix(r.RequestURI, "/ok/chunks"):
			_, _ = io.WriteString(w, "one,")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "two")
		default:
			_, _ = fmt.Fprintf(w, "seen %s %s\n", r.Method, r.RequestURI)
		}
	})}
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
}

// startNginx tells by its access log, into a pipe that is open already.
func startNginx(t *testing.T, at netip.AddrPort, j *journal[seen]) {
	t.Helper()
	dir := t.TempDir()
	conf := fmt.Sprintf(`worker_processes 1; daemon off; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 512; }
http {
  log_format j escape=json '{"method":"$request_method","target":"$request_uri","host":"$http_host","status":$status}';
  access_log /dev/stdout j;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_timeout 60s; keepalive_requests 100000; default_type text/plain;
  server {
    listen %[2]s; server_name _; merge_slashes off;
    location / { return 200 "seen $request_method $request_uri\n"; }
    location = /ok/empty { return 204; }
  }
}
`, dir, at)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	startProcess(t, j, nil, "/usr/sbin/nginx", "-c", file, "-p", dir)
}

// listening waits until at accepts.
func listening(t *testing.T, at netip.AddrPort) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing listens on %s after 20 s: %v", at, err)
		}
	}
}
