package render

import (
	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// Corefile configures the cluster's DNS. It has no upstream: a name outside
// the cluster does not exist.
const Corefile = `.:53 {
    errors
    health {
        lameduck 2s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
    template ANY ANY {
        rcode NXDOMAIN
    }
    prometheus :9153
    cache 5
    loop
    reload
    loadbalance
}
`

type object = map[string]any

func meta(kind, version, name string, extra object) object {
	m := object{"name": name}
	for k, v := range extra {
		m[k] = v
	}
	return object{"apiVersion": version, "kind": kind, "metadata": m}
}

func with(o object, fields object) object {
	for k, v := range fields {
		o[k] = v
	}
	return o
}

const rbac = "rbac.authorization.k8s.io"

// manifests are the objects of a fresh cluster: the API server's right to
// talk to kubelets, and DNS.
func manifests(c plan.Cluster) string {
	dnsLabels := object{"k8s-app": "kube-dns"}
	inSystem := object{"namespace": "kube-system"}
	items := []any{
		with(meta("ClusterRoleBinding", rbac+"/v1", "hauberk-test:kube-apiserver-to-kubelet", nil), object{
			"roleRef":  object{"apiGroup": rbac, "kind": "ClusterRole", "name": "system:kubelet-api-admin"},
			"subjects": []any{object{"apiGroup": rbac, "kind": "User", "name": "kube-apiserver-kubelet-client"}},
		}),
		meta("ServiceAccount", "v1", "coredns", inSystem),
		with(meta("ClusterRole", rbac+"/v1", "system:coredns", nil), object{"rules": []any{
			object{"apiGroups": []any{""}, "resources": []any{"services", "pods", "namespaces"}, "verbs": []any{"list", "watch"}},
			object{"apiGroups": []any{"discovery.k8s.io"}, "resources": []any{"endpointslices"}, "verbs": []any{"list", "watch"}},
		}}),
		with(meta("ClusterRoleBinding", rbac+"/v1", "system:coredns", nil), object{
			"roleRef":  object{"apiGroup": rbac, "kind": "ClusterRole", "name": "system:coredns"},
			"subjects": []any{object{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}},
		}),
		with(meta("ConfigMap", "v1", "coredns", inSystem), object{"data": object{"Corefile": Corefile}}),
		with(meta("Service", "v1", "kube-dns", object{"namespace": "kube-system",
			"labels":      object{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"},
			"annotations": object{"prometheus.io/port": "9153", "prometheus.io/scrape": "true"}}),
			object{"spec": dnsService(c, dnsLabels)}),
		with(meta("Deployment", "apps/v1", "coredns", object{"namespace": "kube-system", "labels": dnsLabels}),
			object{"spec": dnsDeployment(dnsLabels)}),
	}
	return indented(object{"apiVersion": "v1", "kind": "List", "items": items})
}

func dnsService(c plan.Cluster, selector object) object {
	spec := object{
		"selector":   selector,
		"clusterIP":  first(c.DNSAddress()),
		"clusterIPs": strs(c.DNSAddress()),
		"ports": []any{
			object{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
			object{"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
			object{"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
		},
	}
	if c.DualStack {
		spec["ipFamilies"] = []any{"IPv4", "IPv6"}
		spec["ipFamilyPolicy"] = "RequireDualStack"
	}
	return spec
}

func dnsDeployment(labels object) object {
	probe := func(path string, port, period int) object {
		return object{"httpGet": object{"path": path, "port": port}, "periodSeconds": period, "timeoutSeconds": 5}
	}
	return object{
		"replicas": 1,
		"selector": object{"matchLabels": labels},
		"strategy": object{"type": "RollingUpdate", "rollingUpdate": object{"maxUnavailable": 1}},
		"template": object{
			"metadata": object{"labels": labels},
			"spec": object{
				"serviceAccountName": "coredns",
				"priorityClassName":  "system-cluster-critical",
				"dnsPolicy":          "Default",
				"containers": []any{object{
					"name":            "coredns",
					"image":           plan.CoreDNSImage,
					"imagePullPolicy": "IfNotPresent",
					"args":            []any{"-conf", "/etc/coredns/Corefile"},
					"ports": []any{
						object{"containerPort": 53, "name": "dns", "protocol": "UDP"},
						object{"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
						object{"containerPort": 9153, "name": "metrics", "protocol": "TCP"},
					},
					"resources":      object{"requests": object{"cpu": "20m", "memory": "40Mi"}, "limits": object{"memory": "170Mi"}},
					"livenessProbe":  probe("/health", 8080, 10),
					"readinessProbe": probe("/ready", 8181, 2),
					"securityContext": object{
						"allowPrivilegeEscalation": false,
						"capabilities":             object{"add": []any{"NET_BIND_SERVICE"}, "drop": []any{"ALL"}},
						"readOnlyRootFilesystem":   true,
					},
					"volumeMounts": []any{object{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}},
				}},
				"volumes": []any{object{"name": "config", "configMap": object{"name": "coredns",
					"items": []any{object{"key": "Corefile", "path": "Corefile"}}}}},
				"tolerations": []any{object{"key": "CriticalAddonsOnly", "operator": "Exists"}},
			},
		},
	}
}
