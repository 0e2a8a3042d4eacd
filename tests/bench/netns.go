package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

// sidecarUID is the user whose traffic is not redirected.
const sidecarUID = "15015"

// pods is two network namespaces joined by a veth pair, one for the client's
// pod and one for the server's.
type pods struct{ client, server string }

const (
	clientIP = "10.77.0.1"
	serverIP = "10.77.0.2"
)

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func makePods() (*pods, error) {
	id := os.Getpid() % 100000
	p := &pods{client: fmt.Sprintf("hbbench-c%d", id), server: fmt.Sprintf("hbbench-s%d", id)}
	for _, ns := range []string{p.client, p.server} {
		if err := command("ip", "netns", "add", ns); err != nil {
			p.remove()
			return nil, err
		}
	}
	steps := [][]string{{"-n", p.client, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", p.server}}
	for ns, ip := range map[string]string{p.client: clientIP, p.server: serverIP} {
		for _, s := range []string{"link set lo up", "addr add " + ip + "/24 dev eth0", "link set eth0 up", "route add default dev eth0"} {
			steps = append(steps, append([]string{"-n", ns}, strings.Fields(s)...))
		}
	}
	for _, s := range steps {
		if err := command("ip", s...); err != nil {
			p.remove()
			return nil, err
		}
	}
	return p, nil
}

// capture redirects both namespaces as a pod's is, or stops doing so. free is a
// port of the server that is left alone.
func (p *pods) capture(on bool, free string) error {
	for _, ns := range []string{p.client, p.server} {
		rules := []string{"-F OUTPUT", "-F PREROUTING"}
		if on {
			rules = append(rules,
				"-A OUTPUT -p tcp -o lo -j RETURN",
				"-A OUTPUT -p tcp -m owner --uid-owner "+sidecarUID+" -j RETURN",
				"-A OUTPUT -p tcp -j REDIRECT --to-ports 15001",
				"-A PREROUTING -p tcp -m multiport --dports 15020,15021,"+free+" -j RETURN",
				"-A PREROUTING -p tcp -j REDIRECT --to-ports 15006")
		}
		for _, r := range rules {
			if err := command("ip", append([]string{"netns", "exec", ns, "iptables", "-w", "-t", "nat"}, strings.Fields(r)...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pods) remove() {
	for _, ns := range []string{p.client, p.server} {
		_ = command("ip", "netns", "del", ns)
	}
}

// enterNamespace moves the calling thread, which must be locked and must not
// be used for anything else afterwards.
func enterNamespace(name string) error {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	return nil
}

// dial connects from a namespace.
func dial(ctx context.Context, name, address string) (net.Conn, error) {
	var d net.Dialer
	if name == "" {
		return d.DialContext(ctx, "tcp", address)
	}
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := enterNamespace(name); err != nil {
			done <- result{nil, err}
			return
		}
		c, err := d.DialContext(ctx, "tcp", address)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}
