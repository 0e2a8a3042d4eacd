package differential

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// trickle sends one byte of raw each half second until the other end has had
// enough, and returns what it said.
func trickle(t *testing.T, address, raw string) string {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer c.Close()
	stop := make(chan struct{})
	go func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for i := range len(raw) {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if _, err := io.WriteString(c, raw[i:i+1]); err != nil {
				return
			}
		}
	}()
	defer close(stop)
	_ = c.SetReadDeadline(time.Now().Add(90 * time.Second))
	b, err := io.ReadAll(c)
	if n, ok := err.(net.Error); ok && n.Timeout() {
		t.Errorf("%s is still waiting for more of %.20q", address, raw)
	}
	return string(b)
}

// TestSlowPeers: who sends a byte now and then does not hold a connection for
// long, in no phase; crowds of them, of slowhttptest's four kinds, cost bounded
// memory, and leave nothing behind; others are served all the while.
func TestSlowPeers(t *testing.T) {
	needs(t)
	t.Parallel()
	b := backends()[0]
	p := startPair(t, b, options{rules: allowed(), protocol: protocols["declared"]})
	p.fence(t)
	before := [2]int{resident(t, p.client.Process.Pid), resident(t, p.server.Process.Pid)}

	var crowd sync.WaitGroup
	url := "http://" + p.dial + "/ok/slow"
	for _, mode := range []string{"-H -i 2", "-B -i 2 -s 8192", "-R", "-X -w 10 -y 20 -n 2 -z 16 -k 3"} {
		args := append(strings.Fields(mode), "-c", "150", "-r", "100", "-l", "16", "-p", "5", "-u", url)
		crowd.Go(func() {
			// Its exit status tells of the server's availability, which is judged here.
			out, err := exec.CommandContext(t.Context(), "/usr/bin/slowhttptest", args...).CombinedOutput()
			if !bytes.Contains(out, []byte("slowhttptest")) {
				t.Errorf("slowhttptest %s: %v\n%s", mode, err, out)
			}
		})
	}
	for name, tc := range map[string]struct{ address, raw, want string }{
		"head":              {p.dial, "GET /ok HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 400), "HTTP/1.1 408 "},
		"request line":      {p.dial, "GET /" + strings.Repeat("a", 400), "HTTP/1.1 408 "},
		"ClientHello":       {p.inbound, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("a", 400), ""},
		"nothing to mTLS":   {p.inbound, "", ""},
		"a lie of a length": {p.dial, "POST /ok HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Length: 9\r\n", "HTTP/1.1 408 "},
	} {
		crowd.Go(func() {
			if got := trickle(t, tc.address, tc.raw); !strings.HasPrefix(got, tc.want) {
				t.Errorf("slow %s: got %q, want %q", name, got, tc.want)
			}
		})
	}
	done := make(chan struct{})
	go func() { crowd.Wait(); close(done) }()
	most := [2]int{}
	served := 0
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-done:
			tick.Stop()
			p.fence(t)
			for i, name := range []string{"client", "server"} {
				if grown := most[i] - before[i]; grown > 96<<10 {
					t.Errorf("600 slow peers cost the %s's sidecar %d KiB", name, grown)
				}
			}
			if served < 20 {
				t.Errorf("only %d requests of others were served meanwhile", served)
			}
			return
		case <-tick.C:
		}
		target := fmt.Sprintf("/ok/other/%d", served)
		answer := p.send(t, "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(answer, []byte("seen GET "+target+"\n")) {
			t.Fatalf("another client got %q", answer)
		}
		served++
		most[0], most[1] = max(most[0], resident(t, p.client.Process.Pid)), max(most[1], resident(t, p.server.Process.Pid))
	}
}

// resident is a process's memory in KiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d has no resident memory", pid)
	return 0
}
