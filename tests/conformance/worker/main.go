// Command worker runs inside a pod and tries many connections at once. It owns
// the client end of what cyclonus calls a batch, spoken as cyclonus' own worker
// speaks it, with two differences: a connection is tried once and never again,
// so that a policy which comes too late is seen, and it is tried in this process
// rather than by one agnhost each, so that a small machine can probe 324
// connections in the time of one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"
)

// timeout is how long a connection may take. It leaves room for one lost SYN,
// which Linux sends again after a second.
const timeout = 2 * time.Second

// resolving is how long a name may take to resolve: the resolver asks again
// after five seconds when a datagram was lost.
const resolving = 12 * time.Second

// batch is what cyclonus asks a pod to try.
type batch struct {
	Namespace, Pod, Container string
	Requests                  []request
}

type request struct {
	Key      string
	Protocol string
	Host     string
	Port     int
}

// result is how one connection went; an empty Error is success.
type result struct {
	Request request
	Output  string
	Error   string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 || args[0] != "--jobs" {
		return errors.New(`usage: worker --jobs '{"Requests":[{"Key":"k","Protocol":"TCP","Host":"h","Port":80}]}'`)
	}
	var b batch
	if err := json.Unmarshal([]byte(args[1]), &b); err != nil {
		return fmt.Errorf("read the jobs: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(all(ctx, b.Requests))
}

// all tries the requests at once; each host is resolved once.
func all(ctx context.Context, requests []request) []result {
	var names sync.Map
	resolve := func(host string) (netip.Addr, error) {
		once, _ := names.LoadOrStore(host, sync.OnceValues(func() (netip.Addr, error) { return lookup(ctx, host) }))
		return once.(func() (netip.Addr, error))()
	}
	results := make([]result, len(requests))
	var wait sync.WaitGroup
	for i, r := range requests {
		wait.Go(func() {
			results[i] = result{Request: r}
			address, err := resolve(r.Host)
			if err == nil {
				err = connect(ctx, r.Protocol, net.JoinHostPort(address.String(), strconv.Itoa(r.Port)))
			}
			if err != nil {
				results[i].Error = err.Error()
			}
		})
	}
	wait.Wait()
	return results
}

func lookup(ctx context.Context, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolving)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("DNS: %w", err)
	}
	return found[0].Unmap(), nil
}

// connect opens a TCP connection, or sends a datagram and waits for an answer,
// as agnhost connect does.
func connect(ctx context.Context, protocol, address string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, strings.ToLower(protocol), address)
	if err != nil {
		return err
	}
	defer conn.Close()
	switch protocol {
	case "TCP":
		return nil
	case "UDP":
		deadline, _ := ctx.Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("hostname\n")); err != nil {
			return err
		}
		n, err := conn.Read(make([]byte, 1024))
		if err == nil && n == 0 {
			err = errors.New("the server answered with nothing")
		}
		return err
	}
	return fmt.Errorf("protocol %q is not TCP or UDP", protocol)
}
