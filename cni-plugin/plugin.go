// Package cniplugin is the CNI plugin that stands last in the node's chain. It
// owns the translation between the CNI protocol (specification 0.3.1 to 1.1.0)
// and the node agent's unix socket, and nothing else: it programs no rule,
// holds no credential, reads no kubeconfig and keeps no state.
//
// ADD and CHECK fail when the agent does not answer, so that a pod never gets a
// network that the mesh has not prepared; the kubelet retries. DEL succeeds
// when the agent is away, as the specification asks of a DEL: a pod whose
// sandbox is gone must not wait for us to be deleted. The agent forgets such
// pods by itself when it starts.
package cniplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// How long each verb waits for the agent. ADD includes the agent's own wait for
// the control plane, which is shorter.
const (
	addTimeout    = 30 * time.Second
	delTimeout    = 5 * time.Second
	checkTimeout  = 10 * time.Second
	statusTimeout = 5 * time.Second
)

// Plugin is the plugin's verbs.
type Plugin struct {
	stdout, stderr io.Writer
}

// New returns a plugin that writes results to stdout and notes to stderr.
func New(stdout, stderr io.Writer) *Plugin {
	return &Plugin{stdout: stdout, stderr: stderr}
}

// Versions is the versions of the CNI specification that the plugin speaks.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Funcs is the verbs as the CNI library calls them; ctx ends them early.
func (p *Plugin) Funcs(ctx context.Context) skel.CNIFuncs {
	bind := func(f func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return f(ctx, args) }
	}
	return skel.CNIFuncs{
		Add: bind(p.add), Del: bind(p.del), Check: bind(p.check), GC: bind(p.gc), Status: bind(p.status),
	}
}

// conf is our entry of the conflist, as the runtime hands it over.
type conf struct {
	types.PluginConf
	// Socket is the node agent's unix socket; names.CNISocket when empty.
	Socket string `json:"socket,omitempty"`
}

func parseConf(stdin []byte) (*conf, error) {
	c := &conf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "hauberk-cni can't read its network configuration", err.Error())
	}
	if c.Socket == "" {
		c.Socket = names.CNISocket
	}
	return c, nil
}

// parsePrevious reads the result of the plugins before us, which is required:
// we make no interface of our own.
func (c *conf) parsePrevious() error {
	if c.RawPrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "hauberk-cni must be chained after the plugin that makes the pod's network",
			"the network configuration has no prevResult; put the hauberk-cni entry last in the plugins of a .conflist")
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "hauberk-cni can't read the result of the plugin before it", err.Error())
	}
	return nil
}

func (p *Plugin) add(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if err := c.parsePrevious(); err != nil {
		return err
	}
	pod, err := attachment(args, c.PrevResult)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	err = ask(ctx, c.Socket, func(agent hauberkv1.NodeClient) error {
		_, err := agent.AddPod(ctx, &hauberkv1.AddPodRequest{Pod: pod})
		return err
	})
	if err != nil {
		return cniError(err, c.Socket, fmt.Sprintf("add pod %s/%s", pod.GetPodNamespace(), pod.GetPodName()))
	}
	result, err := c.PrevResult.GetAsVersion(c.CNIVersion)
	if err != nil {
		return types.NewError(types.ErrIncompatibleCNIVersion, "hauberk-cni can't hand on the result of the plugin before it", err.Error())
	}
	if err := result.PrintTo(p.stdout); err != nil {
		return types.NewError(types.ErrIOFailure, "hauberk-cni can't write its result", err.Error())
	}
	return nil
}

func (p *Plugin) del(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	err = ask(ctx, c.Socket, func(agent hauberkv1.NodeClient) error {
		_, err := agent.DelPod(ctx, &hauberkv1.DelPodRequest{ContainerId: args.ContainerID, Interface: args.IfName})
		return err
	})
	if err == nil {
		return nil
	}
	if away(err) {
		fmt.Fprintf(p.stderr, "hauberk-cni: delete %s: %s is not answering (%v); the agent forgets the pod when it is back\n", args.ContainerID, c.Socket, err)
		return nil
	}
	return cniError(err, c.Socket, "delete "+args.ContainerID)
}

func (p *Plugin) check(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if err := c.parsePrevious(); err != nil {
		return err
	}
	pod, err := attachment(args, c.PrevResult)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err = ask(ctx, c.Socket, func(agent hauberkv1.NodeClient) error {
		_, err := agent.CheckPod(ctx, &hauberkv1.CheckPodRequest{Pod: pod})
		return err
	})
	if err != nil {
		return cniError(err, c.Socket, fmt.Sprintf("check pod %s/%s", pod.GetPodNamespace(), pod.GetPodName()))
	}
	return nil
}

func (p *Plugin) gc(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	request := &hauberkv1.CollectPodsRequest{}
	for _, v := range c.ValidAttachments {
		request.Valid = append(request.Valid, &hauberkv1.ValidAttachment{ContainerId: v.ContainerID, Interface: v.IfName})
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err = ask(ctx, c.Socket, func(agent hauberkv1.NodeClient) error {
		_, err := agent.CollectPods(ctx, request)
		return err
	})
	if err != nil {
		return cniError(err, c.Socket, "collect pods")
	}
	return nil
}

func (p *Plugin) status(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err = ask(ctx, c.Socket, func(agent hauberkv1.NodeClient) error {
		_, err := agent.Status(ctx, &hauberkv1.StatusRequest{})
		return err
	})
	if err != nil {
		e := cniError(err, c.Socket, "status")
		// The specification reserves code 50 for "can't service ADD requests".
		e.Code = types.ErrPluginNotAvailable
		return e
	}
	return nil
}
