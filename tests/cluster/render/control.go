package render

import (
	"fmt"
	"path/filepath"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// controlPlane are the processes of the control plane in the order of their
// start.
func controlPlane(c plan.Cluster, bin string) []Process {
	v4, _ := c.API()
	api := v4.String()
	etcd := fmt.Sprintf("https://%s:2379", api)
	at := plan.ControlPlane
	tls := func(name string) []string {
		return []string{"--tls-cert-file=" + pki(name+".crt"), "--tls-private-key-file=" + pki(name+".key")}
	}

	apiserver := []string{filepath.Join(bin, "kube-apiserver"),
		"--advertise-address=" + api,
		"--bind-address=" + api,
		"--secure-port=6443",
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + pki("ca.crt"),
		"--etcd-servers=" + etcd,
		"--etcd-cafile=" + pki("ca.crt"),
		"--etcd-certfile=" + pki("etcd-client.crt"),
		"--etcd-keyfile=" + pki("etcd-client.key"),
		"--kubelet-certificate-authority=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki("kubelet-client.crt"),
		"--kubelet-client-key=" + pki("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--proxy-client-cert-file=" + pki("front-proxy.crt"),
		"--proxy-client-key-file=" + pki("front-proxy.key"),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki("service-account.pub"),
		"--service-account-signing-key-file=" + pki("service-account.key"),
		"--service-cluster-ip-range=" + list(c.ServiceRanges()),
		"--profiling=false",
	}
	controllers := []string{filepath.Join(bin, "kube-controller-manager"),
		"--kubeconfig=" + KubeconfigPath(at, "kube-controller-manager"),
		"--authentication-kubeconfig=" + KubeconfigPath(at, "kube-controller-manager"),
		"--authorization-kubeconfig=" + KubeconfigPath(at, "kube-controller-manager"),
		"--bind-address=" + api,
		"--leader-elect=false",
		"--kube-api-qps=200", // the default keeps a start waiting for seconds
		"--kube-api-burst=400",
		"--node-monitor-period=1s", // a node that is ready takes pods at once
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + pki("service-account.key"),
		"--root-ca-file=" + pki("ca.crt"),
		"--cluster-signing-cert-file=" + pki("ca.crt"),
		"--cluster-signing-key-file=" + pki("ca.key"),
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + list(c.PodRanges()),
		"--service-cluster-ip-range=" + list(c.ServiceRanges()),
		"--profiling=false",
	}
	if c.DualStack {
		controllers = append(controllers, "--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64")
	} else {
		controllers = append(controllers, "--node-cidr-mask-size=24")
	}
	return []Process{
		{Name: "etcd", Space: at, OOMScoreAdj: -900, Args: []string{"etcd",
			"--name=" + at,
			"--data-dir=" + plan.EtcdDir(),
			"--listen-client-urls=" + etcd,
			"--advertise-client-urls=" + etcd,
			"--listen-peer-urls=https://127.0.0.1:2380",
			"--initial-advertise-peer-urls=https://127.0.0.1:2380",
			"--initial-cluster=" + at + "=https://127.0.0.1:2380",
			"--client-cert-auth=true",
			"--trusted-ca-file=" + pki("ca.crt"),
			"--cert-file=" + pki("etcd.crt"),
			"--key-file=" + pki("etcd.key"),
			"--peer-client-cert-auth=true",
			"--peer-trusted-ca-file=" + pki("ca.crt"),
			"--peer-cert-file=" + pki("etcd.crt"),
			"--peer-key-file=" + pki("etcd.key"),
			"--unsafe-no-fsync=true", // the cluster is rebuilt after a crash of the machine
			"--logger=zap",
			"--log-level=warn",
		}},
		{Name: "kube-apiserver", Space: at, OOMScoreAdj: -900, Args: append(apiserver, tls("kube-apiserver")...)},
		{Name: "kube-controller-manager", Space: at, OOMScoreAdj: -900, Args: append(controllers, tls("kube-controller-manager")...)},
		{Name: "kube-scheduler", Space: at, OOMScoreAdj: -900, Args: append([]string{filepath.Join(bin, "kube-scheduler"),
			"--kubeconfig=" + KubeconfigPath(at, "kube-scheduler"),
			"--authentication-kubeconfig=" + KubeconfigPath(at, "kube-scheduler"),
			"--authorization-kubeconfig=" + KubeconfigPath(at, "kube-scheduler"),
			"--bind-address=" + api,
			"--leader-elect=false",
			"--profiling=false",
		}, tls("kube-scheduler")...)},
	}
}
