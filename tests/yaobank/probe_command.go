package main

import (
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/tests/yaobank/probe"
)

func probeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Try a connection, or serve something to try it on",
		Long: `Try a connection, or serve something to try it on.

Exit codes of the clients: 0 it worked; 6 the name does not resolve; 7 refused
or unreachable; 22 an HTTP answer of 400 or more; 28 no answer in time, as when
packets are dropped; 52 closed or reset without an answer; 64 wrong usage.`,
	}
	cmd.AddCommand(probeHTTP(), probeTCP(), probeUDP(), probeDNS(), serveHTTP(), serveTCP(), serveUDP(), serveGRPC())
	return cmd
}

func probeHTTP() *cobra.Command {
	var want probe.HTTPRequest
	cmd := &cobra.Command{
		Use:   "http METHOD URL",
		Short: "Make a request and print status, headers and body",
		Args:  exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			want.Method, want.URL = strings.ToUpper(args[0]), args[1]
			return probe.HTTP(cmd.Context(), cmd.OutOrStdout(), want)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&want.Headers, "header", "H", nil, "header as NAME=VALUE or 'NAME: VALUE'; may be repeated")
	flags.StringVarP(&want.Body, "data", "d", "", "body of the request")
	flags.DurationVar(&want.Timeout, "timeout", 5*time.Second, "longest wait for the whole answer")
	flags.IntVar(&want.Count, "count", 1, "number of requests")
	flags.DurationVar(&want.Interval, "interval", 100*time.Millisecond, "pause between requests")
	flags.BoolVar(&want.Reuse, "reuse", false, "keep the connection between requests")
	flags.BoolVar(&want.JSON, "json", false, "print one JSON document a request")
	flags.BoolVar(&want.AllHeaders, "all-headers", false, "print every header of the answer")
	return cmd
}

func probeTCP() *cobra.Command {
	var want probe.TCPRequest
	cmd := &cobra.Command{
		Use:   "tcp HOST:PORT",
		Short: "Connect, and send and read if asked to",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want.Address = args[0]
			return probe.TCP(cmd.Context(), cmd.OutOrStdout(), want)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&want.Send, "send", "", "line to send")
	flags.BoolVar(&want.Line, "line", false, "read one line (a banner or an echo)")
	flags.BoolVar(&want.EOF, "eof", false, "close the sending half and read to the end")
	flags.DurationVar(&want.Timeout, "timeout", 5*time.Second, "longest time for the whole attempt")
	return cmd
}

func probeUDP() *cobra.Command {
	var want probe.UDPRequest
	cmd := &cobra.Command{
		Use:   "udp HOST:PORT",
		Short: "Send a datagram and wait for one back",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want.Address = args[0]
			return probe.UDP(cmd.Context(), cmd.OutOrStdout(), want)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&want.Send, "send", "ping", "content of the datagram")
	flags.DurationVar(&want.Timeout, "timeout", 2*time.Second, "wait for an answer to each datagram")
	flags.IntVar(&want.Tries, "tries", 2, "datagrams to send until one is answered")
	return cmd
}

func probeDNS() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "dns NAME",
		Short: "Resolve a name",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return probe.DNS(cmd.Context(), cmd.OutOrStdout(), args[0], timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "longest wait for an answer")
	return cmd
}

func serveHTTP() *cobra.Command {
	return &cobra.Command{
		Use:   "serve-http ADDRESS",
		Short: "Answer each request with a JSON description of it",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			listener, err := listen(cmd, args[0])
			if err != nil {
				return err
			}
			return probe.ServeHTTP(cmd.Context(), listener)
		},
	}
}

func serveTCP() *cobra.Command {
	var banner string
	cmd := &cobra.Command{
		Use:   "serve-tcp ADDRESS",
		Short: "Echo lines, after a banner if one is given",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			listener, err := listen(cmd, args[0])
			if err != nil {
				return err
			}
			return probe.ServeTCP(cmd.Context(), listener, banner)
		},
	}
	cmd.Flags().StringVar(&banner, "banner", "", "line to send before the client says anything")
	return cmd
}

func serveGRPC() *cobra.Command {
	return &cobra.Command{
		Use:   "serve-grpc ADDRESS",
		Short: "Answer gRPC health checks",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			listener, err := listen(cmd, args[0])
			if err != nil {
				return err
			}
			return probe.ServeGRPC(cmd.Context(), listener)
		},
	}
}

func serveUDP() *cobra.Command {
	return &cobra.Command{
		Use:   "serve-udp ADDRESS",
		Short: "Echo datagrams",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var lc net.ListenConfig
			conn, err := lc.ListenPacket(cmd.Context(), "udp", args[0])
			if err != nil {
				return err
			}
			cmd.Printf("listening on %s\n", conn.LocalAddr())
			return probe.ServeUDP(cmd.Context(), conn)
		},
	}
}

func listen(cmd *cobra.Command, address string) (net.Listener, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(cmd.Context(), "tcp", address)
	if err == nil {
		cmd.Printf("listening on %s\n", listener.Addr())
	}
	return listener, err
}

// exactly is cobra.ExactArgs with the probe's exit code for wrong usage.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return &probe.Failure{Code: probe.Usage, Err: err}
		}
		return nil
	}
}
