package sidecar

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

const h2Proto = hauberkv1.AppProtocol_APP_PROTOCOL_GRPC

// grpcApp is a real gRPC server with gRPC's own interoperability service.
func grpcApp(t testing.TB, opts ...grpc.ServerOption) (string, *grpc.Server) {
	t.Helper()
	l := listen(t)
	s := grpc.NewServer(opts...)
	testpb.RegisterTestServiceServer(s, interop.NewTestServer())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String(), s
}

// grpcConn dials the client's sidecar.
func (p *pair) grpcConn(opts ...grpc.DialOption) *grpc.ClientConn {
	p.t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", p.dial)
		})}, opts...)
	c, err := grpc.NewClient("passthrough:///server.bank.svc:80", opts...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

func grpcRule(name string, action hauberkv1.Action, methods ...string) *hauberkv1.Rule {
	m := &hauberkv1.HTTPMatch{}
	for _, n := range methods {
		m.Grpc = append(m.Grpc, &hauberkv1.GRPCMatch{Service: "grpc.testing.TestService", Method: n})
	}
	return rule(name, action, m)
}

// TestGRPCInterop runs gRPC's interoperability cases through the pair.
func TestGRPCInterop(t *testing.T) {
	for name, s := range map[string]setup{
		"declared": {protocol: h2Proto, serverProto: h2Proto},
		"detected": {},
		"policy": {ingress: tier(rule("all", allow, &hauberkv1.HTTPMatch{Grpc: []*hauberkv1.GRPCMatch{{Service: "grpc.testing.TestService"},
			{Service: "grpc.testing.UnimplementedService"}}}))},
	} {
		t.Run(name, func(t *testing.T) {
			s.app, _ = grpcApp(t)
			p := newPair(t, s)
			conn := p.grpcConn()
			c := testpb.NewTestServiceClient(conn)
			for name, f := range map[string]func(context.Context, testpb.TestServiceClient, ...grpc.CallOption){
				"empty_unary":                 interop.DoEmptyUnaryCall,
				"large_unary":                 interop.DoLargeUnaryCall,
				"client_streaming":            interop.DoClientStreaming,
				"server_streaming":            interop.DoServerStreaming,
				"ping_pong":                   interop.DoPingPong,
				"empty_stream":                interop.DoEmptyStream,
				"timeout_on_sleeping_server":  interop.DoTimeoutOnSleepingServer,
				"cancel_after_begin":          interop.DoCancelAfterBegin,
				"cancel_after_first_response": interop.DoCancelAfterFirstResponse,
				"custom_metadata":             interop.DoCustomMetadata,
				"status_code_and_message":     interop.DoStatusCodeAndMessage,
				"special_status_message":      interop.DoSpecialStatusMessage,
			} {
				t.Run(name, func(t *testing.T) { f(t.Context(), c) })
			}
			if name != "policy" {
				t.Run("unimplemented_method", func(t *testing.T) { interop.DoUnimplementedMethod(t.Context(), conn) })
			}
			t.Run("unimplemented_service", func(t *testing.T) {
				interop.DoUnimplementedService(t.Context(), testpb.NewUnimplementedServiceClient(conn))
			})
			p.eventually("access log of a call", func() bool {
				return strings.Contains(p.serverAccess.String(), `"protocol":"http/2","method":"POST","path":"/grpc.testing.TestService/EmptyCall"`) &&
					strings.Contains(p.serverAccess.String(), `"grpc_status":0`) && strings.Contains(p.clientAccess.String(), `"grpc_status":2`)
			})
		})
	}
}

// TestGRPCDeniedByMethod: a denial of one method is PERMISSION_DENIED, names
// what denied, and leaves the others alone.
func TestGRPCDeniedByMethod(t *testing.T) {
	app, _ := grpcApp(t)
	for name, s := range map[string]setup{
		"ingress": {app: app, ingress: tier(grpcRule("empty", allow, "EmptyCall"))},
		"egress":  {app: app, egress: tier(grpcRule("empty", allow, "EmptyCall"))},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, s)
			c := testpb.NewTestServiceClient(p.grpcConn())
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := c.EmptyCall(ctx, &testpb.Empty{}); err != nil {
				t.Fatal(err)
			}
			var header metadata.MD
			_, err := c.UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.Header(&header))
			want := "hauberk: denied by tier default: no rule of MeshPolicy bank/api matched, " + name
			if s, _ := status.FromError(err); s.Code() != codes.PermissionDenied || s.Message() != want {
				t.Errorf("UnaryCall: %v, want %s", err, want)
			}
			stream, err := c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
				t.Errorf("FullDuplexCall: %v", err)
			}
			if _, err := c.EmptyCall(ctx, &testpb.Empty{}); err != nil {
				t.Errorf("after the denials: %v", err)
			}
		})
	}
}

// BenchmarkGRPCPair is a unary call through both sidecars, gRPC's own client and
// server included.
func BenchmarkGRPCPair(b *testing.B) {
	app, _ := grpcApp(b)
	p := newPair(b, setup{app: app, protocol: h2Proto, serverProto: h2Proto, quiet: true, ingress: tier(grpcRule("all", allow, ""))})
	c := testpb.NewTestServiceClient(p.grpcConn())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.EmptyCall(b.Context(), &testpb.Empty{}); err != nil {
			b.Fatal(err)
		}
	}
}
