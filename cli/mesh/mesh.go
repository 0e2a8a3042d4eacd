// Package mesh reads a running mesh for the command line: its own pods, the
// pods of its users, and what the admin ends of both say. It owns what those
// answers look like from outside; it judges nothing.
package mesh

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Components of the mesh, as their label app.kubernetes.io/component says.
const (
	Control  = "control"
	Injector = "injector"
	Node     = "node"
)

// Pods are the live pods of one of the mesh's own components, by name.
func Pods(ctx context.Context, c *run.Clients, component string) ([]corev1.Pod, error) {
	list, err := c.Kube.CoreV1().Pods(names.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=hauberk,app.kubernetes.io/component=" + component,
	})
	if err != nil {
		return nil, fmt.Errorf("list the pods of hauberk-%s: %w", component, err)
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !Live(&p) })
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods, nil
}

// Live reports whether a pod runs or will run, and is not being deleted.
func Live(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// Sidecar is the pod's sidecar; nil when it has none.
func Sidecar(p *corev1.Pod) *corev1.Container {
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.Name == names.ProxyContainer && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			return c
		}
	}
	return nil
}

// SidecarStatus is the kubelet's word on the sidecar; nil before the first.
func SidecarStatus(p *corev1.Pod) *corev1.ContainerStatus {
	for i := range p.Status.InitContainerStatuses {
		if s := &p.Status.InitContainerStatuses[i]; s.Name == names.ProxyContainer {
			return s
		}
	}
	return nil
}

// Settings is what the live installation gives sidecars.
type Settings struct {
	Inject patch.Config
	// Missing is what could not be read, one sentence each with its mend.
	Missing []string
}

// ReadSettings reads the injector's configuration from the cluster. What is
// not there is said in Missing; an error is that of the API server.
func ReadSettings(ctx context.Context, c *run.Clients) (*Settings, error) {
	s := &Settings{Inject: patch.Config{TrustDomain: names.TrustDomain}}
	missing := func(format string, args ...any) { s.Missing = append(s.Missing, fmt.Sprintf(format, args...)) }

	d, err := c.Kube.AppsV1().Deployments(names.Namespace).Get(ctx, names.Injector, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		missing("Deployment %s/%s: the image of the sidecar", names.Namespace, names.Injector)
	case err != nil:
		return nil, fmt.Errorf("read the injector's settings: %w", err)
	default:
		s.Inject.Version = d.Labels["app.kubernetes.io/version"]
		for _, container := range d.Spec.Template.Spec.Containers {
			if err := applyFlags(&s.Inject, container.Args); err != nil {
				return nil, fmt.Errorf("read the injector's settings: %w", err)
			}
		}
	}
	cm, err := c.Kube.CoreV1().ConfigMaps(names.Namespace).Get(ctx, names.TrustBundleConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		missing("ConfigMap %s/%s: the trust bundle", names.Namespace, names.TrustBundleConfigMap)
	case err != nil:
		return nil, fmt.Errorf("read the trust bundle: %w", err)
	default:
		s.Inject.TrustBundle = cm.Data[names.TrustBundleKey]
	}
	svc, err := c.Kube.CoreV1().Services(names.Namespace).Get(ctx, names.Control, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		missing("Service %s/%s: the address of the control plane", names.Namespace, names.Control)
	case err != nil:
		return nil, fmt.Errorf("read the control plane's address: %w", err)
	default:
		s.Inject.ControlAddress = controlAddress(svc)
	}
	return s, nil
}

func controlAddress(svc *corev1.Service) string {
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return ""
	}
	port := int32(names.PortControl)
	for _, p := range svc.Spec.Ports {
		if p.Name == "grpc" || len(svc.Spec.Ports) == 1 {
			port = p.Port
		}
	}
	return net.JoinHostPort(svc.Spec.ClusterIP, strconv.Itoa(int(port)))
}

// applyFlags reads what the injector is started with; flags that say nothing
// of sidecars are left alone.
func applyFlags(cfg *patch.Config, args []string) error {
	for i, arg := range args {
		name, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !ok && i+1 < len(args) {
			value = args[i+1]
		}
		switch name {
		case "proxy-image":
			cfg.Image = value
		case "proxy-image-pull-policy":
			cfg.ImagePullPolicy = corev1.PullPolicy(value)
		case "trust-domain":
			cfg.TrustDomain = value
		case "revision":
			cfg.Revision = value
		case "control-address":
			cfg.ControlAddress = value
		case "proxy-log-level":
			cfg.LogLevel = value
		case "proxy-drain-seconds":
			seconds, err := strconv.Atoi(value)
			if err != nil {
				return fmt.Errorf("--%s: %w", name, err)
			}
			cfg.DrainSeconds = seconds
		}
	}
	return nil
}

// Decide says what the injector would do with a pod that runs now; an error is
// a refusal. It needs no cluster.
func Decide(p *corev1.Pod, ns *corev1.Namespace, cfg patch.Config) (patch.Decision, error) {
	facts := patch.NamespaceFacts{Name: p.Namespace}
	if ns != nil {
		facts.Labels = ns.Labels
	}
	d, _, err := patch.Plan(p, facts, cfg)
	return d, err
}

// Certificates reads PEM; anything else than certificates is an error.
func Certificates(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certs, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a PEM block of type %s", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
}
