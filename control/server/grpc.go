package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
)

// Limits of a connection.
const (
	maxRequest        = 4 << 20  // bytes; a node's initial versions are the largest
	maxResponse       = 32 << 20 // bytes
	maxHeaders        = 32 << 10 // bytes; a token is a few KiB
	maxStreams        = 16       // a connection; clients need two
	handshakeTimeout  = 10 * time.Second
	pingInterval      = 15 * time.Second
	pingTimeout       = 10 * time.Second
	minPingInterval   = 5 * time.Second // clients ping every ten seconds
	maxConnectionAge  = time.Hour       // so that clients spread over replicas again
	connectionGrace   = 5 * time.Second
	gracefulStopLimit = 5 * time.Second
)

type registrar = grpc.ServiceRegistrar

// serveGRPC serves until ctx is done. Callers without a certificate are let in
// for the CA alone; the other services ask for one.
func serveGRPC(ctx context.Context, address string, self *identity.Source, log *slog.Logger, check *lifecycle.Check, register func(registrar)) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(identity.ServerTLS(self, identity.WithOptionalClient()))),
		grpc.MaxRecvMsgSize(maxRequest), grpc.MaxSendMsgSize(maxResponse), grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: pingInterval, Timeout: pingTimeout,
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: connectionGrace,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPingInterval, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
			defer recoverCall(log, info.FullMethod, &err)
			return handler(ctx, request)
		}),
		grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
			defer recoverCall(log, info.FullMethod, &err)
			return handler(service, stream)
		}),
	)
	register(server)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	check.Ready()
	select {
	case err := <-ended:
		return fmt.Errorf("serve on %s: %w", address, err)
	case <-ctx.Done():
	}
	check.NotReady("stopping")
	// Streams have no end of their own: GOAWAY lets clients move to another
	// replica, then what is left is closed.
	forced := time.AfterFunc(gracefulStopLimit, server.Stop)
	defer forced.Stop()
	server.GracefulStop()
	<-ended
	return nil
}

// recoverCall turns a defect in one call into an error of that call.
func recoverCall(log *slog.Logger, method string, err *error) {
	if r := recover(); r != nil {
		log.Error("call failed by a defect", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error")
	}
}
