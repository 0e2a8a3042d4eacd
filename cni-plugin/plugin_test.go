package cniplugin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent answers with err and keeps what it was asked.
type agent struct {
	hauberkv1.UnimplementedNodeServer
	err error
	pod *hauberkv1.PodAttachment
	gc  *hauberkv1.CollectPodsRequest
}

func (a *agent) AddPod(_ context.Context, r *hauberkv1.AddPodRequest) (*hauberkv1.AddPodResponse, error) {
	a.pod = r.GetPod()
	return &hauberkv1.AddPodResponse{}, a.err
}

func (a *agent) DelPod(context.Context, *hauberkv1.DelPodRequest) (*hauberkv1.DelPodResponse, error) {
	return &hauberkv1.DelPodResponse{}, a.err
}

func (a *agent) CollectPods(_ context.Context, r *hauberkv1.CollectPodsRequest) (*hauberkv1.CollectPodsResponse, error) {
	a.gc = r
	return &hauberkv1.CollectPodsResponse{}, a.err
}

func (a *agent) Status(context.Context, *hauberkv1.StatusRequest) (*hauberkv1.StatusResponse, error) {
	return &hauberkv1.StatusResponse{}, a.err
}

// serve returns the socket of a real gRPC server.
func (a *agent) serve(t *testing.T) string {
	t.Helper()
	socket := t.TempDir() + "/s"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	hauberkv1.RegisterNodeServer(server, a)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return socket
}

const podArgs = "IgnoreUnknown=1;K8S_POD_NAMESPACE=bank;K8S_POD_NAME=a;K8S_POD_UID=u"

// The result that ptp (one host interface) and bridge (the bridge first) give,
// with a field for each family and things that must come through.
const previous = `{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"02:00:00:00:00:01"},{"name":"veth1","mac":"02:00:00:00:00:02"},
	{"name":"eth0","sandbox":"/var/run/netns/x"}],"ips":[{"interface":2,"address":"10.0.0.2/24","gateway":"10.0.0.1"},{"interface":2,"address":"fd00::2/64"}],
	"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.96.0.10"],"search":["x"]}}`

func stdin(socket, prevResult string) []byte {
	conf := map[string]any{"cniVersion": "1.0.0", "name": "pods", "type": "hauberk-cni", "socket": socket}
	if prevResult != "" {
		conf["prevResult"] = json.RawMessage(prevResult)
	}
	data, err := json.Marshal(conf)
	if err != nil {
		panic(err)
	}
	return data
}

func TestAdd(t *testing.T) {
	for _, c := range []struct {
		name     string
		args     string
		previous string
		err      error
		code     uint
		want     string // in the error
	}{
		{"good", podArgs, previous, nil, 0, ""},
		{"no result before", podArgs, "", nil, types.ErrInvalidNetworkConfig, "must be chained after"},
		{"no address", podArgs, `{"cniVersion":"1.0.0"}`, nil, types.ErrInvalidNetworkConfig, "gave the pod no address"},
		{"result of another shape", podArgs, `{"cniVersion":"1.0.0","ips":"x"}`, nil, types.ErrDecodingFailure, "can't read the result"},
		{"no arguments", "", previous, nil, types.ErrInvalidEnvironmentVariables, "K8S_POD_NAMESPACE is missing"},
		{"no uid", "K8S_POD_NAMESPACE=bank;K8S_POD_NAME=a", previous, nil, types.ErrInvalidEnvironmentVariables, "K8S_POD_UID is missing"},
		{"garbage", "a;b", previous, nil, types.ErrInvalidEnvironmentVariables, "can't read CNI_ARGS"},
		{"agent waits in vain", podArgs, previous, status.Error(codes.FailedPrecondition, "not told yet"), types.ErrTryAgainLater, "add pod bank/a: not told yet"},
		{"agent refuses", podArgs, previous, status.Error(codes.InvalidArgument, "no"), types.ErrInvalidEnvironmentVariables, "add pod bank/a: no"},
		{"agent fails", podArgs, previous, errors.New("nft"), types.ErrInternal, "nft"},
		{"agent goes away", podArgs, previous, status.Error(codes.Unavailable, "bye"), types.ErrTryAgainLater, "is not answering on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &agent{err: c.err}
			var out, notes strings.Builder
			err := New(&out, &notes).Funcs(t.Context()).Add(&skel.CmdArgs{
				ContainerID: "c", Netns: "/var/run/netns/x", IfName: "eth0", Args: c.args, StdinData: stdin(a.serve(t), c.previous)})
			if c.want != "" {
				var e *types.Error
				if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Msg+e.Details, c.want) {
					t.Errorf("got %#v, want code %d and %q", err, c.code, c.want)
				}
				if out.Len() > 0 {
					t.Errorf("a failed ADD printed a result: %s", out.String())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := &hauberkv1.PodAttachment{ContainerId: "c", Netns: "/var/run/netns/x", Interface: "eth0", PodNamespace: "bank", PodName: "a", PodUid: "u",
				Addresses: []string{"10.0.0.2", "fd00::2"}, HostInterface: "veth1"}
			if diff := cmp.Diff(want, a.pod, protocmp.Transform()); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			before, err := current.NewResult([]byte(c.previous))
			if err != nil {
				t.Fatal(err)
			}
			after, err := current.NewResult([]byte(out.String()))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("the result before was changed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOtherVerbs(t *testing.T) {
	missing := t.TempDir() + "/none"
	for _, c := range []struct {
		name string
		verb func(skel.CNIFuncs) func(*skel.CmdArgs) error
		err  error
		away bool
		code uint // of the error; 0 for none
		note string
	}{
		{"del", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.Del }, nil, false, 0, ""},
		{"del fails", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.Del }, errors.New("nft"), false, types.ErrInternal, ""},
		{"del while the agent is away", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.Del }, nil, true, 0, "forgets the pod when it is back"},
		{"gc while the agent is away", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.GC }, nil, true, types.ErrTryAgainLater, ""},
		{"check without a result before", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.Check }, nil, false, types.ErrInvalidNetworkConfig, ""},
		{"status", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.Status }, nil, false, 0, ""},
		{"status not ready", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.Status }, status.Error(codes.FailedPrecondition, "no"), false, types.ErrPluginNotAvailable, ""},
		{"status while the agent is away", func(f skel.CNIFuncs) func(*skel.CmdArgs) error { return f.Status }, nil, true, types.ErrPluginNotAvailable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &agent{err: c.err}
			socket := missing
			if !c.away {
				socket = a.serve(t)
			}
			var out, notes strings.Builder
			err := c.verb(New(&out, &notes).Funcs(t.Context()))(&skel.CmdArgs{ContainerID: "c", IfName: "eth0", StdinData: stdin(socket, "")})
			var e *types.Error
			if c.code == 0 && err != nil || c.code != 0 && (!errors.As(err, &e) || e.Code != c.code) {
				t.Errorf("got %v, want code %d", err, c.code)
			}
			if !strings.Contains(notes.String(), c.note) || out.Len() > 0 {
				t.Errorf("noted %q, printed %q", notes.String(), out.String())
			}
		})
	}
	a := &agent{}
	text := strings.Replace(string(stdin(a.serve(t), "")), "{", `{"cni.dev/valid-attachments":[{"containerID":"x","ifname":"eth0"}],`, 1)
	if err := New(&strings.Builder{}, &strings.Builder{}).Funcs(t.Context()).GC(&skel.CmdArgs{StdinData: []byte(text)}); err != nil {
		t.Fatal(err)
	}
	want := &hauberkv1.CollectPodsRequest{Valid: []*hauberkv1.ValidAttachment{{ContainerId: "x", Interface: "eth0"}}}
	if diff := cmp.Diff(want, a.gc, protocmp.Transform()); diff != "" {
		t.Errorf("collect (-want +got):\n%s", diff)
	}
}

func FuzzParseArgs(f *testing.F) {
	f.Add(podArgs)
	f.Add(";;=;a=b=c")
	f.Fuzz(func(t *testing.T, args string) {
		values, err := parseArgs(args)
		if err == nil && len(values) > strings.Count(args, "=") {
			t.Errorf("%q has more values than equals signs: %v", args, values)
		}
	})
}
