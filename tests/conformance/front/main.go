// Command front stands before agnhost in the suites' image. Where the kernel
// has no SCTP it answers agnhost's two SCTP commands itself, with the first two
// packets of the protocol over a raw socket, so that what policies do to SCTP is
// seen on every kernel; everything else it hands to agnhost. It owns no more of
// SCTP than INIT and INIT ACK.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// real is where agnhost itself is in the image.
const real = "/agnhost.real"

// portPrefix begins the variables that tell agnhost porter what to serve.
const portPrefix = "SERVE_SCTP_PORT_"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	args := os.Args[1:]
	ports, err := served(os.Environ())
	switch {
	case err != nil:
	case kernelHasSCTP():
		err = syscall.Exec(real, append([]string{real}, args...), os.Environ())
	case len(args) > 0 && args[0] == "porter" && len(ports) > 0:
		err = serve(ctx, ports)
	case len(args) > 0 && args[0] == "connect":
		var d dial
		if d, err = parse(args[1:]); err == nil && d.protocol == "sctp" {
			err = d.connect(ctx)
			break
		}
		fallthrough
	default:
		err = syscall.Exec(real, append([]string{real}, args...), os.Environ())
	}
	if err != nil {
		// The suites read these words.
		word := "OTHER"
		if errors.Is(err, os.ErrDeadlineExceeded) {
			word = "TIMEOUT"
		}
		fmt.Fprintf(os.Stderr, "%s: %v\n", word, err)
		os.Exit(1)
	}
}

func kernelHasSCTP() bool {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, syscall.IPPROTO_SCTP)
	if err != nil {
		return false
	}
	_ = syscall.Close(socket) // nothing was sent
	return true
}

// served is the SCTP ports that the environment names.
func served(environment []string) (map[uint16]bool, error) {
	ports := map[uint16]bool{}
	for _, e := range environment {
		key, _, _ := strings.Cut(e, "=")
		text, ok := strings.CutPrefix(key, portPrefix)
		if !ok {
			continue
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("variable %s does not end in a port", key)
		}
		ports[uint16(port)] = true
	}
	return ports, nil
}

// dial is what agnhost connect is asked for.
type dial struct {
	protocol, address string
	timeout           time.Duration
}

func parse(args []string) (dial, error) {
	d := dial{protocol: "tcp", timeout: 10 * time.Second}
	for _, a := range args {
		value, found := strings.CutPrefix(a, "--protocol=")
		if found {
			d.protocol = value
			continue
		}
		if value, found = strings.CutPrefix(a, "--timeout="); found {
			timeout, err := time.ParseDuration(value)
			if err != nil {
				return dial{}, fmt.Errorf("flag %s: %w", a, err)
			}
			d.timeout = timeout
			continue
		}
		if !strings.HasPrefix(a, "-") {
			d.address = a
		}
	}
	return d, nil
}

// connect sends INIT until INIT ACK comes or time is up.
func (d dial) connect(ctx context.Context) error {
	host, service, err := net.SplitHostPort(d.address)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return fmt.Errorf("port of %s: %w", d.address, err)
	}
	var dialer net.Dialer
	opened, err := dialer.DialContext(ctx, "ip:132", host)
	if err != nil {
		return err
	}
	defer opened.Close()
	conn, ok := opened.(*net.IPConn)
	if !ok {
		return fmt.Errorf("a raw socket is a %T", opened)
	}
	deadline := time.Now().Add(d.timeout)
	own := uint16(32768 + os.Getpid()%28000)
	tag := uint32(time.Now().UnixNano()) | 1
	buffer := make([]byte, 2048)
	for time.Now().Before(deadline) {
		if _, err := conn.Write(initPacket(own, uint16(port), tag)); err != nil {
			return err
		}
		wait := time.Now().Add(500 * time.Millisecond)
		if wait.After(deadline) {
			wait = deadline
		}
		if err := conn.SetReadDeadline(wait); err != nil {
			return err
		}
		for {
			n, _, err := conn.ReadFrom(buffer) // without the IPv4 header, which Read leaves
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if p, ok := read(buffer[:n]); ok && p.kind == initAck && p.from == uint16(port) && p.to == own && p.verification == tag {
				return nil
			}
		}
	}
	return fmt.Errorf("connect to %s: no INIT ACK: %w", d.address, os.ErrDeadlineExceeded)
}

// serve answers INIT to the ports until the context ends.
func serve(ctx context.Context, ports map[uint16]bool) error {
	listening := make(chan error, 2)
	for _, network := range []string{"ip4:132", "ip6:132"} {
		var config net.ListenConfig
		conn, err := config.ListenPacket(ctx, network, "")
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the read below
		defer stop()
		go func() { listening <- answer(conn, ports) }()
	}
	err := <-listening
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func answer(conn net.PacketConn, ports map[uint16]bool) error {
	buffer := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return err
		}
		p, ok := read(buffer[:n])
		if !ok || p.kind != initChunk || !ports[p.to] {
			continue
		}
		// A peer that is unreachable by now asks again or is gone.
		_, _ = conn.WriteTo(ackPacket(p), from)
	}
}
