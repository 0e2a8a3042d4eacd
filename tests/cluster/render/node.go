package render

import (
	"fmt"
	"path/filepath"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// Places inside a node, the same as on any Kubernetes node.
const (
	ContainerdSocket = "/run/containerd/containerd.sock"
	CNIBinDir        = "/opt/cni/bin"
	CNIConfDir       = "/etc/cni/net.d"
	// ConflistName is the primary network's file in CNIConfDir.
	ConflistName = "10-hauberk-test.conflist"
	// PrimaryPlugin is ptp, started by the cluster program (see package host).
	PrimaryPlugin = "ptp-nodad"
)

// nodeProcesses are a node's processes in the order of their start.
func nodeProcesses(c plan.Cluster, n plan.Node, bin string) []Process {
	dir := plan.ConfigDir(n.Name)
	return []Process{
		{Name: "containerd-" + n.Name, Space: n.Name, OOMScoreAdj: -900,
			Args: []string{"containerd", "--config=" + filepath.Join(dir, "containerd.toml")}},
		{Name: "kubelet-" + n.Name, Space: n.Name, OOMScoreAdj: -900,
			Args: []string{filepath.Join(bin, "kubelet"),
				"--config=" + filepath.Join(dir, "kubelet.json"),
				"--kubeconfig=" + KubeconfigPath(n.Name, "kubelet"),
				"--hostname-override=" + n.Name,
				"--node-ip=" + list(c.Addresses(n)),
				"--cert-dir=/var/lib/kubelet/pki"}},
		{Name: "kube-proxy-" + n.Name, Space: n.Name, OOMScoreAdj: -900,
			Args: []string{filepath.Join(bin, "kube-proxy"), "--config=" + filepath.Join(dir, "kube-proxy.json")}},
	}
}

func nodeFiles(c plan.Cluster, n plan.Node) []File {
	dir := plan.ConfigDir(n.Name)
	return []File{
		{Path: filepath.Join(dir, "containerd.toml"), Content: containerdConfig(c)},
		{Path: filepath.Join(dir, "kubelet.json"), Content: kubeletConfig(c, n)},
		{Path: filepath.Join(dir, "kube-proxy.json"), Content: proxyConfig(c, n)},
		{Path: filepath.Join(dir, ConflistName), Content: Conflist(c, n)},
		{Path: filepath.Join(dir, "resolv.conf"), Content: "# The cluster has no DNS but its own.\n"},
	}
}

// containerdConfig is of version 2, which containerd 1.6, 1.7 and 2 read.
func containerdConfig(c plan.Cluster) string {
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = %q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = %q
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = %q
  conf_dir = %q
`, ContainerdSocket, plan.PauseImage, c.Snapshotter, CNIBinDir, CNIConfDir)
}

func kubeletConfig(c plan.Cluster, n plan.Node) string {
	cfg := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": pki("ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"address":                  first(c.Addresses(n)),
		"tlsCertFile":              pki("kubelet-" + n.Name + ".crt"),
		"tlsPrivateKeyFile":        pki("kubelet-" + n.Name + ".key"),
		"containerRuntimeEndpoint": "unix://" + ContainerdSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + plan.CgroupName + "/" + n.Name,
		"cgroupsPerQOS":            true,
		"failCgroupV1":             false,
		"enforceNodeAllocatable":   []any{},
		// The node shares the machine's disk and memory; it must not evict for
		// what others take of them.
		"failSwapOn":   false,
		"evictionHard": map[string]any{"memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		// Images come by hand and never again by themselves.
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		"imageMaximumGCAge":           "0s",
		"clusterDNS":                  strs(c.DNSAddress()),
		"clusterDomain":               "cluster.local",
		"resolvConf":                  filepath.Join(plan.ConfigDir(n.Name), "resolv.conf"),
		"protectKernelDefaults":       true, // the node shows it the values it wants
		"makeIPTablesUtilChains":      true,
		"maxPods":                     110,
		"serializeImagePulls":         false,
		"nodeStatusUpdateFrequency":   "10s",
		"nodeStatusReportFrequency":   "1m0s",
		"syncFrequency":               "30s",
		"fileCheckFrequency":          "5m0s",
		"httpCheckFrequency":          "5m0s",
		"runtimeRequestTimeout":       "2m0s",
		"volumePluginDir":             "/var/lib/kubelet/volume-plugins",
		"logging":                     map[string]any{"verbosity": 1},
	}
	return indented(cfg)
}

func proxyConfig(c plan.Cluster, n plan.Node) string {
	return indented(map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "nftables",
		"hostnameOverride":   n.Name,
		"bindAddress":        first(c.Addresses(n)),
		"healthzBindAddress": first(c.Addresses(n)) + ":10256",
		"metricsBindAddress": "127.0.0.1:10249",
		"clusterCIDR":        list(c.PodRanges()),
		"detectLocalMode":    "ClusterCIDR",
		"clientConnection":   map[string]any{"kubeconfig": KubeconfigPath(n.Name, "kube-proxy")},
		// The table of connections is the machine's: its limits stay as they are.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		"nftables":  map[string]any{"syncPeriod": "30s", "minSyncPeriod": "200ms"},
	})
}

// Conflist is the node's primary pod network: a pair of virtual Ethernet ends
// for each pod, routed, with host ports.
func Conflist(c plan.Cluster, n plan.Node) string {
	var ranges []any
	for _, p := range c.PodCIDRs(n) {
		ranges = append(ranges, []any{map[string]any{"subnet": p.String()}})
	}
	routes := []any{map[string]any{"dst": "0.0.0.0/0"}}
	if c.DualStack {
		routes = append(routes, map[string]any{"dst": "::/0"})
	}
	return indented(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "hauberk-test",
		"plugins": []any{
			map[string]any{
				"type":   PrimaryPlugin,
				"ipMasq": false,
				"mtu":    1500,
				"ipam":   map[string]any{"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": ranges, "routes": routes},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}, "snat": true},
		},
	})
}

// nodeList are the Node objects. They are made before the kubelets register
// so that each node has the pod range which its network is configured for,
// whichever registers first.
func nodeList(c plan.Cluster) string {
	var items []any
	for _, n := range c.Workers() {
		cidrs := c.PodCIDRs(n)
		items = append(items, map[string]any{
			"apiVersion": "v1",
			"kind":       "Node",
			"metadata":   map[string]any{"name": n.Name, "labels": map[string]any{"kubernetes.io/hostname": n.Name, "node-role.kubernetes.io/worker": ""}},
			"spec":       map[string]any{"podCIDR": cidrs[0].String(), "podCIDRs": strs(cidrs)},
		})
	}
	return indented(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
}
