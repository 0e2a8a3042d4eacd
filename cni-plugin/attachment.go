package cniplugin

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// attachment is what the agent needs to know of the pod: who it is, from the
// runtime's arguments, and what the plugins before us made, from their result.
func attachment(args *skel.CmdArgs, previous types.Result) (*hauberkv1.PodAttachment, error) {
	pod := &hauberkv1.PodAttachment{ContainerId: args.ContainerID, Netns: args.Netns, Interface: args.IfName}
	values, err := parseArgs(args.Args)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "hauberk-cni can't read CNI_ARGS", err.Error())
	}
	for _, field := range []struct {
		name string
		to   *string
	}{
		{"K8S_POD_NAMESPACE", &pod.PodNamespace}, {"K8S_POD_NAME", &pod.PodName}, {"K8S_POD_UID", &pod.PodUid},
	} {
		if *field.to = values[field.name]; *field.to == "" {
			return nil, types.NewError(types.ErrInvalidEnvironmentVariables,
				fmt.Sprintf("hauberk-cni serves Kubernetes pods only: %s is missing in CNI_ARGS", field.name),
				"containerd 1.6 and CRI-O 1.22 or newer set it; take hauberk-cni out of configurations that other tools use")
		}
	}
	result, err := current.NewResultFromResult(previous)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "hauberk-cni can't read the result of the plugin before it", err.Error())
	}
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, types.NewError(types.ErrDecodingFailure,
				fmt.Sprintf("hauberk-cni can't read the address %q in the result of the plugin before it", ip.Address.String()), "")
		}
		pod.Addresses = append(pod.Addresses, addr.Unmap().String())
	}
	if len(pod.Addresses) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "hauberk-cni: the plugin before it gave the pod no address",
			"hauberk-cni must come after the plugin that allocates addresses")
	}
	pod.HostInterface = hostInterface(result.Interfaces)
	return pod, nil
}

// hostInterface is the last interface of the result that is on the host:
// ptp names one, bridge names the bridge first and the pod's end after it. It
// is a hint: the agent asks the kernel.
func hostInterface(interfaces []*current.Interface) string {
	name := ""
	for _, i := range interfaces {
		if i != nil && i.Sandbox == "" {
			name = i.Name
		}
	}
	return name
}

// parseArgs reads "K=V;K=V" as the specification has it.
func parseArgs(args string) (map[string]string, error) {
	values := map[string]string{}
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not of the form key=value", pair)
		}
		values[key] = value
	}
	return values, nil
}
