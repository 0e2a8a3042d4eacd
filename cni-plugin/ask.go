package cniplugin

import (
	"context"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// ask calls the agent over its socket. The socket's file mode and the peer
// credentials that the agent checks stand in for transport security.
func ask(ctx context.Context, socket string, call func(hauberkv1.NodeClient) error) error {
	conn, err := grpc.NewClient("passthrough:///hauberk-node",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return fmt.Errorf("prepare connection to %s: %w", socket, err)
	}
	defer conn.Close()
	if err := call(hauberkv1.NewNodeClient(conn)); err != nil {
		if ctx.Err() != nil {
			return status.FromContextError(ctx.Err()).Err()
		}
		return err
	}
	return nil
}

// away reports whether the agent gave no answer, as opposed to a bad one. The
// agent itself never answers with these codes.
func away(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// cniError is err as the runtime and, in the pod's events, the user see it.
func cniError(err error, socket, doing string) *types.Error {
	if away(err) {
		return types.NewError(types.ErrTryAgainLater,
			fmt.Sprintf("hauberk-cni: %s: the hauberk node agent is not answering on %s; the pod is retried by the kubelet", doing, socket),
			fmt.Sprintf("see the hauberk-node pod of this node in hauberk-system: %s", status.Convert(err).Message()))
	}
	code := types.ErrInternal
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.ResourceExhausted, codes.Aborted:
		code = types.ErrTryAgainLater
	case codes.InvalidArgument:
		code = types.ErrInvalidEnvironmentVariables
	case codes.NotFound:
		code = types.ErrUnknownContainer
	}
	return types.NewError(code, fmt.Sprintf("hauberk-cni: %s: %s", doing, status.Convert(err).Message()), "")
}
