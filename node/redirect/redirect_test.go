package redirect_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/node/redirect/redirecttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a pod and the host that it hangs on.
type pair struct {
	host, pod redirecttest.Namespace
	*redirect.Redirector
}

func newPair(t *testing.T) pair {
	t.Helper()
	redirecttest.NeedRoot(t, "redirection of real connections")
	p := pair{host: redirecttest.New(t, "host"), pod: redirecttest.New(t, "pod")}
	redirecttest.Connect(t, p.host, p.pod)
	r, err := redirect.New(redirect.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p.Redirector = r
	return p
}

// listen serves "<port> <original destination>\n" to each connection, from
// inside the namespace.
func listen(t *testing.T, ns redirecttest.Namespace, port int) {
	t.Helper()
	var l net.Listener
	err := redirect.Enter(ns.Path, func() error {
		var err error
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%d %s\n", port, originalDestination(c.(*net.TCPConn)))
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// originalDestination asks conntrack, as the sidecar does; "none" when the
// connection was not redirected.
func originalDestination(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	result := "none"
	_ = raw.Control(func(fd uintptr) {
		level, option := unix.SOL_IP, unix.SO_ORIGINAL_DST
		if c.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
			level = unix.SOL_IPV6
		}
		var sa unix.RawSockaddrInet6
		size := uint32(unsafe.Sizeof(sa))
		if _, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(option),
			uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
			return
		}
		bytes := (*[2]byte)(unsafe.Pointer(&sa.Port))
		port := uint16(bytes[0])<<8 | uint16(bytes[1])
		addr := netip.AddrFrom16(sa.Addr)
		if sa.Family == unix.AF_INET {
			addr = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&sa)).Addr)
		}
		if to := netip.AddrPortFrom(addr, port); to.String() != c.LocalAddr().String() {
			result = to.String()
		}
	})
	return result
}

// dial connects from inside ns as uid and returns what the listener says, or
// "timeout", "refused" or "unreachable".
func dial(t *testing.T, ns redirecttest.Namespace, uid int, address string, wait time.Duration) string {
	t.Helper()
	answer := make([]byte, 128)
	n := 0
	err := redirect.Enter(ns.Path, func() error {
		// Only this thread's; the owner match looks at the socket's creator.
		if _, err := unix.SetfsuidRetUid(uid); err != nil {
			return err
		}
		defer unix.SetfsuidRetUid(os.Getuid())
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		n, err = c.Read(answer)
		return err
	})
	var timeout net.Error
	switch {
	case err == nil:
		return strings.TrimSpace(string(answer[:n]))
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}

func TestRedirect(t *testing.T) {
	p := newPair(t)
	for _, port := range []int{names.PortOutbound, names.PortInbound, names.PortHealth, names.PortAdmin, 8080, 8443, 9999} {
		listen(t, p.pod, port)
	}
	for _, port := range []int{80, 443} {
		listen(t, p.host, port)
	}
	app, sidecar := 1000, names.ProxyUID
	rules := redirect.Rules{
		ExcludeInboundPorts:  []uint16{9999, 9998},
		ExcludeOutboundPorts: []uint16{443},
		ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("2001:db8::8000/113")},
	}
	p.host.IP(t, "addr", "add", "192.0.2.200/24", "dev", "host")
	p.host.IP(t, "addr", "add", "2001:db8::8001/64", "dev", "host", "nodad")

	// Programming twice must be the same as programming once.
	for range 2 {
		if err := p.Program(t.Context(), p.pod.Path, rules); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Check(t.Context(), p.pod.Path, rules); err != nil {
		t.Fatal(err)
	}
	const soon = 5 * time.Second
	for _, c := range []struct {
		name string
		from redirecttest.Namespace
		uid  int
		to   string
		wait time.Duration
		want string
	}{
		{"outbound v4", p.pod, app, "192.0.2.1:80", soon, "15001 192.0.2.1:80"},
		{"outbound v6", p.pod, app, "[2001:db8::1]:80", soon, "15001 [2001:db8::1]:80"},
		{"outbound to nobody v4", p.pod, app, "198.51.100.7:1234", soon, "15001 198.51.100.7:1234"},
		{"outbound as root", p.pod, 0, "192.0.2.1:80", soon, "15001 192.0.2.1:80"},
		{"the sidecar's own v4", p.pod, sidecar, "192.0.2.1:80", soon, "80 none"},
		{"the sidecar's own v6", p.pod, sidecar, "[2001:db8::1]:80", soon, "80 none"},
		{"excluded port v4", p.pod, app, "192.0.2.1:443", soon, "443 none"},
		{"excluded port v6", p.pod, app, "[2001:db8::1]:443", soon, "443 none"},
		{"excluded range v4", p.pod, app, "192.0.2.200:80", soon, "80 none"},
		{"excluded range v6", p.pod, app, "[2001:db8::8001]:80", soon, "80 none"},
		{"loopback", p.pod, app, "127.0.0.1:8080", soon, "8080 none"},
		{"loopback v6", p.pod, app, "[::1]:8080", soon, "8080 none"},
		{"own address", p.pod, sidecar, "192.0.2.2:8080", soon, "8080 none"},
		{"own address v6", p.pod, sidecar, "[2001:db8::2]:8080", soon, "8080 none"},
		{"inbound v4", p.host, app, "192.0.2.2:8080", soon, "15006 192.0.2.2:8080"},
		{"inbound v6", p.host, app, "[2001:db8::2]:8080", soon, "15006 [2001:db8::2]:8080"},
		{"inbound to no listener", p.host, app, "192.0.2.2:81", soon, "15006 192.0.2.2:81"},
		{"inbound as the sidecar's uid elsewhere", p.host, sidecar, "192.0.2.2:8080", soon, "15006 192.0.2.2:8080"},
		{"health v4", p.host, app, "192.0.2.2:15021", soon, "15021 none"},
		{"health v6", p.host, app, "[2001:db8::2]:15021", soon, "15021 none"},
		{"excluded inbound v4", p.host, app, "192.0.2.2:9999", soon, "9999 none"},
		{"excluded inbound v6", p.host, app, "[2001:db8::2]:9999", soon, "9999 none"},
		{"outbound listener from outside v4", p.host, app, "192.0.2.2:15001", 300 * time.Millisecond, "timeout"},
		{"outbound listener from outside v6", p.host, app, "[2001:db8::2]:15001", 300 * time.Millisecond, "timeout"},
		{"inbound listener from outside v4", p.host, app, "192.0.2.2:15006", 300 * time.Millisecond, "timeout"},
		{"inbound listener from outside v6", p.host, app, "[2001:db8::2]:15006", 300 * time.Millisecond, "timeout"},
		{"admin from outside", p.host, app, "192.0.2.2:15000", 300 * time.Millisecond, "timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, dial(t, c.from, c.uid, c.to, c.wait)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}

	t.Run("only included ports", func(t *testing.T) {
		only := redirect.Rules{IncludeInboundPorts: []uint16{8080}}
		if err := p.Program(t.Context(), p.pod.Path, only); err != nil {
			t.Fatal(err)
		}
		for to, want := range map[string]string{
			"192.0.2.2:8080": "15006 192.0.2.2:8080", "192.0.2.2:8443": "8443 none",
			"[2001:db8::2]:8080": "15006 [2001:db8::2]:8080", "[2001:db8::2]:8443": "8443 none",
		} {
			if diff := cmp.Diff(want, dial(t, p.host, app, to, soon)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", to, diff)
			}
		}
	})

	t.Run("removed", func(t *testing.T) {
		for range 2 {
			if err := p.Remove(t.Context(), p.pod.Path); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff("80 none", dial(t, p.pod, app, "192.0.2.1:80", soon)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for _, command := range []string{"iptables-save", "ip6tables-save"} {
			output, err := p.pod.Command(t, command).CombinedOutput()
			if err != nil || strings.Contains(string(output), "HAUBERK") {
				t.Errorf("%s: %v\n%s", command, err, output)
			}
		}
	})
}

func TestCheckFindsChanges(t *testing.T) {
	p := newPair(t)
	rules := redirect.Rules{ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("::ffff:10.1.2.3/104")}}
	// More ports than one rule takes: -m multiport has 15.
	rules.ExcludeInboundPorts = []uint16{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}
	for _, c := range []struct {
		change []string
		want   string // in the error; empty for none
	}{
		{nil, ""},
		{[]string{"iptables", "-t", "nat", "-F", "HAUBERK_OUTPUT"}, "HAUBERK_OUTPUT was changed"},
		{[]string{"iptables", "-t", "nat", "-I", "HAUBERK_OUTPUT", "-j", "RETURN"}, "HAUBERK_OUTPUT was changed"},
		{[]string{"ip6tables", "-t", "nat", "-D", "OUTPUT", "-p", "tcp", "-j", "HAUBERK_OUTPUT"}, "check IPv6 redirection"},
		{[]string{"iptables", "-t", "nat", "-I", "PREROUTING", "-j", "ACCEPT"}, "does not begin with"},
		{[]string{"iptables", "-t", "raw", "-F", "HAUBERK_GUARD"}, "HAUBERK_GUARD was changed"},
	} {
		t.Run(strings.Join(c.change, " "), func(t *testing.T) {
			for _, command := range []string{"iptables", "ip6tables"} {
				for _, table := range []string{"nat", "raw"} {
					if output, err := p.pod.Command(t, command, "-t", table, "-F").CombinedOutput(); err != nil {
						t.Fatalf("flush: %v: %s", err, output)
					}
				}
			}
			if err := p.Program(t.Context(), p.pod.Path, rules); err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				if output, err := p.pod.Command(t, c.change...).CombinedOutput(); err != nil {
					t.Fatalf("change: %v: %s", err, output)
				}
			}
			err := p.Check(t.Context(), p.pod.Path, rules)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestNamespace(t *testing.T) {
	p := newPair(t)
	name, err := redirect.HostInterface(p.pod.Path, "lo")
	if err == nil || !strings.Contains(err.Error(), "veth") {
		t.Errorf("loopback: got %q, %v", name, err)
	}
	// The veth's other end is in the host namespace of the test, not in ours.
	if name, err := redirect.HostInterface(p.pod.Path, "eth0"); err == nil {
		t.Errorf("other end elsewhere: got %q", name)
	}
	if !redirect.Exists(p.pod.Path) || redirect.Exists("/etc/hostname") || redirect.Exists("/var/run/netns/none") {
		t.Error("Exists is wrong about a namespace, a file, or nothing")
	}
	if err := p.Program(t.Context(), "/var/run/netns/none", redirect.Rules{}); err == nil {
		t.Error("programmed a namespace that does not exist")
	}
	if err := p.Remove(t.Context(), "/var/run/netns/none"); err != nil {
		t.Error(err)
	}
	if err := p.Program(t.Context(), p.pod.Path, redirect.Rules{ExcludeInboundPorts: []uint16{0}}); err == nil {
		t.Error("took port 0")
	}
}

func TestHostInterface(t *testing.T) {
	p := newPair(t)
	other := redirecttest.New(t, "other")
	for _, c := range []struct{ from, want string }{{p.host.Path, "host"}, {other.Path, ""}} {
		var got string
		err := redirect.Enter(c.from, func() error {
			var err error
			got, err = redirect.HostInterface(p.pod.Path, "eth0")
			return err
		})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("from %s: got %q, %v, want %q", c.from, got, err, c.want)
		}
	}
}
