package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// TCPRequest is one connection: connect, send, read.
type TCPRequest struct {
	Address string
	Send    string // a newline is added
	Line    bool   // read one line, which a server-first protocol sends by itself
	EOF     bool   // close the sending half and read to the end
	Timeout time.Duration
}

// TCP tries a connection and prints who it reached and what was read. A
// transparent proxy accepts before the far side does: read something back
// before concluding that it was reached.
func TCP(ctx context.Context, out io.Writer, want TCPRequest) error {
	ctx, cancel := context.WithTimeout(ctx, want.Timeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", want.Address)
	if err != nil {
		return classify(err, false)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fmt.Fprintf(out, "connected %s from %s\n", conn.RemoteAddr(), conn.LocalAddr())
	if want.Send != "" {
		if _, err := io.WriteString(conn, want.Send+"\n"); err != nil {
			return classify(err, true)
		}
	}
	switch {
	case want.EOF:
		if half, ok := conn.(*net.TCPConn); ok {
			if err := half.CloseWrite(); err != nil {
				return classify(err, true)
			}
		}
		n, err := io.Copy(out, io.LimitReader(conn, maxShown))
		if err != nil {
			return classify(err, true)
		}
		if n == 0 {
			return classify(io.EOF, true)
		}
	case want.Line:
		line, err := bufio.NewReader(io.LimitReader(conn, 64<<10)).ReadString('\n')
		if err != nil {
			return classify(err, true)
		}
		fmt.Fprint(out, line)
	}
	return nil
}

// UDPRequest is one datagram and the wait for one back.
type UDPRequest struct {
	Address string
	Send    string
	Timeout time.Duration
	Tries   int // the datagram is sent again after Timeout
}

// UDP sends and prints the answer. A drop anywhere shows as a timeout.
func UDP(ctx context.Context, out io.Writer, want UDPRequest) error {
	var dialer net.Dialer
	dialing, cancel := context.WithTimeout(ctx, want.Timeout)
	conn, err := dialer.DialContext(dialing, "udp", want.Address)
	cancel()
	if err != nil {
		return classify(err, false)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var failure *Failure
	buffer := make([]byte, 64<<10)
	for range max(1, want.Tries) {
		if err := conn.SetDeadline(time.Now().Add(want.Timeout)); err != nil {
			return classify(err, true)
		}
		if _, err := conn.Write([]byte(want.Send)); err != nil {
			failure = classify(err, false)
			continue
		}
		n, err := conn.Read(buffer)
		if err == nil {
			fmt.Fprintf(out, "answer from %s: %s\n", conn.RemoteAddr(), buffer[:n])
			return nil
		}
		failure = classify(err, false)
	}
	return failure
}

// DNS resolves a name and prints one address a line.
func DNS(ctx context.Context, out io.Writer, name string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return classify(err, false)
	}
	for _, address := range addresses {
		fmt.Fprintln(out, address)
	}
	return nil
}

// idleTime ends connections of the servers that say nothing.
const idleTime = 5 * time.Minute

// ServeTCP echoes lines on each connection, after a banner if there is one: a
// server-first protocol is exactly a banner before the client says anything.
func ServeTCP(ctx context.Context, listener net.Listener, banner string) error {
	var open sync.WaitGroup
	defer open.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", listener.Addr(), err)
		}
		open.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			echo(conn, banner)
		})
	}
}

// echo speaks to one client until it leaves; its errors are the client's.
func echo(conn net.Conn, banner string) {
	if banner != "" {
		if _, err := fmt.Fprintf(conn, "%s\n", banner); err != nil {
			return
		}
	}
	lines := bufio.NewScanner(conn)
	for conn.SetDeadline(time.Now().Add(idleTime)) == nil && lines.Scan() {
		if _, err := fmt.Fprintf(conn, "echo %s %s\n", conn.RemoteAddr(), lines.Text()); err != nil {
			return
		}
	}
}

// ServeUDP answers each datagram with its sender and content.
func ServeUDP(ctx context.Context, conn net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read datagram on %s: %w", conn.LocalAddr(), err)
		}
		// A datagram that cannot be answered is lost, as datagrams are.
		_, _ = conn.WriteTo([]byte("echo "+from.String()+" "+strings.TrimSpace(string(buffer[:n]))), from)
	}
}

// ServeGRPC answers gRPC health checks (grpc.health.v1) with SERVING.
func ServeGRPC(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve grpc on %s: %w", listener.Addr(), err)
	}
	return nil
}
