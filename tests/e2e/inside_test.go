package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func portNumber(n int) intstr.IntOrString { return intstr.FromInt32(int32(n)) }

// patience is how long an attempt waits until it counts as dropped. It is
// longer than a sidecar waits for the control plane to tell it of a peer that it
// never met (2 s), so that a slow machine drops nothing that is allowed.
const patience = 2500 * time.Millisecond

// process is one of a pod's processes on this machine.
type process struct {
	pid     int
	command string
}

// processes are a pod's. The local cluster's nodes are namespaces of this machine,
// so that a pod's processes are in its process table.
func processes(uid string) ([]process, error) {
	names := []string{"pod" + uid, "pod" + strings.ReplaceAll(uid, "-", "_")}
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, g := range groups {
		text, err := os.ReadFile(g)
		if err != nil || !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(string(text), n) }) {
			continue // gone since, or another's
		}
		dir := filepath.Dir(g)
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		out = append(out, process{pid, strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no process of pod %s on this machine: is its node here?", uid)
	}
	return out, nil
}

// place is a network namespace.
type place string

// place is the network of the pod.
func (r *running) place() (place, error) {
	all, err := processes(string(r.UID))
	if err != nil {
		return "", err
	}
	return place(fmt.Sprintf("/proc/%d/ns/net", all[0].pid)), nil
}

// nodePlace is the network of a node of the local cluster.
func nodePlace(node string) place { return place("/var/lib/hauberk-cluster/ns/" + node + ".net") }

// enter runs a function in a network namespace. Sockets stay where they were
// made, so what do returns may be used outside.
func (p place) enter(do func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and nobody else
		// finds himself in the namespace.
		runtime.LockOSThread()
		there, err := netns.GetFromPath(string(p))
		if err != nil {
			done <- fmt.Errorf("network namespace %s: %w", p, err)
			return
		}
		defer there.Close()
		if err := netns.Set(there); err != nil {
			done <- fmt.Errorf("enter %s: %w", p, err)
			return
		}
		done <- do()
	}()
	return <-done
}

// dial connects from a network namespace to an address (not a name).
func (p place) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := p.enter(func() (err error) {
		// One address is dialled on the caller's own thread.
		dialer := net.Dialer{FallbackDelay: -1}
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// seen is how an attempt went.
type seen string

// What an attempt may see. Everything but answered is closed.
const (
	answered  seen = "answered"
	refused   seen = "refused"  // a reset or ICMP error instead of a connection
	reset     seen = "reset"    // closed without an answer
	dropped   seen = "dropped"  // nothing in time
	forbidden seen = "403"      // HTTP
	failed5xx seen = "502..504" // HTTP of a sidecar that reached nobody
)

func (s seen) open() bool { return s == answered }

func classified(err error) (seen, error) {
	var network net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return refused, nil
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return reset, nil
	case errors.As(err, &network) && network.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return dropped, nil
	}
	return "", err
}

// attempt is one thing to try from a place.
type attempt struct {
	protocol string // tcp, udp, http, ping
	to       netip.AddrPort
	method   string // of http; GET if empty
	path     string // of http
	body     string // of http
	header   http.Header
}

// answer is what came back, for http.
type answer struct {
	status int
	body   string
	header http.Header
}

// try makes an attempt; an error is of the test and not of the network.
func (p place) try(ctx context.Context, a attempt) (seen, answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch a.protocol {
	case "tcp", "udp":
		conn, err := p.dial(ctx, a.protocol, a.to.String())
		if err != nil {
			s, err := classified(err)
			return s, answer{}, err
		}
		defer conn.Close()
		s, text, err := echoed(conn, patience)
		return s, answer{body: text}, err
	case "http":
		got, err := p.http(ctx, a)
		if err != nil {
			s, err := classified(err)
			return s, answer{}, err
		}
		switch {
		case got.status == http.StatusForbidden:
			return forbidden, got, nil
		case got.status >= 502 && got.status <= 504:
			return failed5xx, got, nil
		case got.status != http.StatusOK:
			return "", got, fmt.Errorf("GET %s: %d %s", a.to, got.status, got.body)
		}
		return answered, got, nil
	case "ping":
		ok, err := p.ping(a.to.Addr(), patience)
		if err != nil || !ok {
			return dropped, answer{}, err
		}
		return answered, answer{}, nil
	}
	return "", answer{}, fmt.Errorf("unknown protocol %q", a.protocol)
}

// echoed sends a line and wants it back.
func echoed(conn net.Conn, limit time.Duration) (seen, string, error) {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", "", err
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		s, err := classified(err)
		return s, "", err
	}
	buffer := make([]byte, 1500)
	n, err := conn.Read(buffer)
	if err != nil {
		s, err := classified(err)
		return s, "", err
	}
	if text := string(buffer[:n]); strings.Contains(text, "hello") {
		return answered, text, nil
	}
	return "", string(buffer[:n]), fmt.Errorf("the echo is %q", buffer[:n])
}

// http makes a request on a connection of its own.
func (p place) http(ctx context.Context, a attempt) (answer, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return p.dial(ctx, network, address)
		},
	}
	method := a.method
	if method == "" {
		method = http.MethodGet
	}
	path := a.path
	if path == "" {
		path = "/"
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+a.to.String()+path, strings.NewReader(a.body))
	if err != nil {
		return answer{}, err
	}
	for k, v := range a.header {
		request.Header[k] = v
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return answer{status: response.StatusCode, body: string(body), header: response.Header}, err
}

// ping sends an ICMP echo request and waits for the reply to it (RFC 792, 4443).
func (p place) ping(to netip.Addr, limit time.Duration) (bool, error) {
	network, local, request, reply := "ip4:icmp", "0.0.0.0", byte(8), byte(0)
	if to.Is6() {
		network, local, request, reply = "ip6:ipv6-icmp", "::", 128, 129
	}
	var conn net.PacketConn
	if err := p.enter(func() (err error) { conn, err = net.ListenPacket(network, local); return err }); err != nil {
		return false, fmt.Errorf("raw socket: %w", err)
	}
	defer conn.Close()
	id := uint16(time.Now().UnixNano())
	message := make([]byte, 16)
	message[0] = request
	binary.BigEndian.PutUint16(message[4:], id)
	if to.Is4() { // the kernel does it for IPv6
		binary.BigEndian.PutUint16(message[2:], checksum(message))
	}
	if _, err := conn.WriteTo(message, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		s, err := classified(err)
		return s == answered, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return false, err
	}
	buffer := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if err != nil {
			_, err := classified(err)
			return false, err
		}
		if n >= 8 && buffer[0] == reply && binary.BigEndian.Uint16(buffer[4:]) == id {
			return true, nil
		}
	}
}

// checksum is of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
