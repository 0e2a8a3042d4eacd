package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/distribute"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Each replica serves a part of the clients, and the leader, which writes
// status, must count them all: it asks the other replicas what their clients
// acknowledged. Only the control plane's own identity may ask.
const (
	replicaService = "hauberk.control.Replica"
	acksMethod     = "/" + replicaService + "/Acks"

	askTimeout  = 2 * time.Second
	askInterval = 5 * time.Second // between rounds of asking
)

// acksFunc answers the call.
type acksFunc func(context.Context) (*wrapperspb.BytesValue, error)

func registerReplica(s registrar, trustDomain spiffeid.TrustDomain, discovery *distribute.Server) {
	answer := acksFunc(func(ctx context.Context) (*wrapperspb.BytesValue, error) {
		p, err := distribute.PeerFrom(ctx)
		if err != nil {
			return nil, status.Error(codes.Unauthenticated, "a client certificate is needed")
		}
		if p.ID != identity.ControlID(trustDomain) {
			return nil, status.Error(codes.PermissionDenied, "only the control plane's replicas may ask")
		}
		data, err := json.Marshal(discovery.Acks())
		if err != nil {
			return nil, status.Error(codes.Internal, "acknowledgements can't be written")
		}
		return wrapperspb.Bytes(data), nil
	})
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: replicaService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Acks",
			Handler: func(service any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
				request := new(emptypb.Empty)
				if err := decode(request); err != nil {
					return nil, err
				}
				handler := func(ctx context.Context, _ any) (any, error) { return service.(acksFunc)(ctx) }
				if intercept == nil {
					return handler(ctx, request)
				}
				return intercept(ctx, request, &grpc.UnaryServerInfo{Server: service, FullMethod: acksMethod}, handler)
			},
		}},
		Metadata: "control/server/replica.go",
	}, answer)
}

// ackCollector knows what all replicas' clients acknowledged.
type ackCollector struct {
	discovery *distribute.Server
	authority *authorityTask
	latest    *atomic.Pointer[compile.Resources]
	selfUID   string
	log       *slog.Logger
	onChange  func() // set before run

	mu     sync.Mutex
	others map[string]distribute.Acks // by pod UID of the replica
	wanted time.Time                  // when collect was last called: only the leader does
}

func newAckCollector(d *distribute.Server, a *authorityTask, latest *atomic.Pointer[compile.Resources], selfUID string, log *slog.Logger) *ackCollector {
	return &ackCollector{discovery: d, authority: a, latest: latest, selfUID: selfUID, log: log}
}

func (a *ackCollector) changed() { a.onChange() }

// collect is what is known now, without waiting for anybody.
func (a *ackCollector) collect() distribute.Acks {
	acks := a.discovery.Acks()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wanted = time.Now()
	for _, other := range a.others {
		acks.Merge(other)
	}
	return acks
}

// run asks the other replicas while somebody wants to know.
func (a *ackCollector) run(ctx context.Context) error {
	if !a.authority.wait(ctx) {
		return nil
	}
	tick := time.NewTicker(askInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.mu.Lock()
		wanted := time.Since(a.wanted) < 12*askInterval
		a.mu.Unlock()
		if !wanted {
			continue
		}
		found := make(map[string]distribute.Acks)
		for uid, address := range a.replicas() {
			acks, err := a.ask(ctx, uid, address)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				a.log.Debug("replica does not answer", "address", address, "error", err)
				continue
			}
			found[uid] = acks
		}
		a.mu.Lock()
		a.others = found
		a.mu.Unlock()
		if len(found) > 0 {
			a.onChange()
		}
	}
}

// replicas is the other replicas' pod UIDs and addresses.
func (a *ackCollector) replicas() map[string]string {
	found := make(map[string]string)
	resources := a.latest.Load()
	if resources == nil || a.selfUID == "" {
		return found // alone, or outside of the cluster
	}
	for uid, w := range resources.Workloads {
		if w.GetNamespace() == names.Namespace && w.GetServiceAccount() == names.Control &&
			uid != a.selfUID && len(w.GetAddresses()) > 0 {
			found[uid] = net.JoinHostPort(w.GetAddresses()[0], strconv.Itoa(names.PortControl))
		}
	}
	return found
}

func (a *ackCollector) ask(ctx context.Context, uid, address string) (distribute.Acks, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	authority := a.authority.get()
	config := identity.ClientTLS(authority.SelfSource(), identity.Expect{ID: identity.ControlID(authority.TrustDomain()), PodUID: uid})
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)))
	if err != nil {
		return distribute.Acks{}, fmt.Errorf("ask replica %s: %w", address, err)
	}
	defer conn.Close()
	answer := new(wrapperspb.BytesValue)
	if err := conn.Invoke(ctx, acksMethod, new(emptypb.Empty), answer); err != nil {
		return distribute.Acks{}, fmt.Errorf("ask replica %s: %w", address, err)
	}
	var acks distribute.Acks
	if err := json.Unmarshal(answer.GetValue(), &acks); err != nil {
		return distribute.Acks{}, fmt.Errorf("ask replica %s: %w", address, errors.New("answer can't be read"))
	}
	return acks, nil
}
