package injector

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// Config is what the process is started with.
type Config struct {
	// Sidecar is the configuration of sidecars but for the trust bundle, which
	// is read from the cluster.
	Sidecar patch.Config
	// Kubeconfig is empty inside a cluster.
	Kubeconfig string
	// Namespace is the mesh's own.
	Namespace string
	// Log level of the injector itself.
	LogLevel slog.Level
	// Listen addresses.
	WebhookAddress, HealthAddress, MetricsAddress, AdminAddress string
}

// ParseConfig reads flags, with the environment that Kubernetes sets for the
// Service of the control plane as the default of its address.
func ParseConfig(args []string, getenv func(string) string) (Config, error) {
	c := Config{Sidecar: patch.Config{Version: version.Version}}
	flags := flag.NewFlagSet("hauberk-injector", flag.ContinueOnError)
	flags.StringVar(&c.Sidecar.Image, "proxy-image", getenv("HAUBERK_PROXY_IMAGE"), "image of the sidecar (env HAUBERK_PROXY_IMAGE)")
	flags.Func("proxy-image-pull-policy", "Always, IfNotPresent or Never", func(s string) error {
		c.Sidecar.ImagePullPolicy = corev1.PullPolicy(s)
		return nil
	})
	flags.StringVar(&c.Sidecar.ControlAddress, "control-address", serviceAddress(getenv), "ip:port of the control plane (default: the Service in the environment)")
	flags.StringVar(&c.Sidecar.TrustDomain, "trust-domain", names.TrustDomain, "SPIFFE trust domain")
	flags.StringVar(&c.Sidecar.Revision, "revision", patch.DefaultRevision, "value of the label "+names.LabelRevision+" that asks for this injector")
	flags.StringVar(&c.Sidecar.LogLevel, "proxy-log-level", "info", "log level of sidecars")
	flags.IntVar(&c.Sidecar.DrainSeconds, "proxy-drain-seconds", 20, "how long sidecars drain")
	flags.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig outside of a cluster")
	flags.StringVar(&c.Namespace, "namespace", names.Namespace, "namespace of the mesh")
	flags.TextVar(&c.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	flags.StringVar(&c.WebhookAddress, "webhook-address", ":"+strconv.Itoa(names.PortWebhook), "where reviews are answered")
	flags.StringVar(&c.HealthAddress, "health-address", ":"+strconv.Itoa(names.PortHealth), "where /healthz and /readyz are")
	flags.StringVar(&c.MetricsAddress, "metrics-address", ":"+strconv.Itoa(names.PortMetrics), "where /metrics is")
	flags.StringVar(&c.AdminAddress, "admin-address", "127.0.0.1:"+strconv.Itoa(names.PortAdmin), "where /debug/pprof is; loopback only")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q: hauberk-injector takes flags only", flags.Arg(0))
	}
	return c, c.Validate()
}

// serviceAddress is the control plane's Service as the kubelet tells it. A
// container that starts before the Service is made is told when it is started
// again.
func serviceAddress(getenv func(string) string) string {
	host := getenv("HAUBERK_CONTROL_SERVICE_HOST")
	if host == "" {
		return ""
	}
	for _, name := range []string{"HAUBERK_CONTROL_SERVICE_PORT_GRPC", "HAUBERK_CONTROL_SERVICE_PORT"} {
		if port := getenv(name); port != "" {
			return net.JoinHostPort(host, port)
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(names.PortControl))
}

// Validate tells everything that is wrong.
func (c Config) Validate() error {
	errs := []error{c.Sidecar.ValidateSettings()} // the trust bundle is read from the cluster
	if c.Namespace == "" {
		errs = append(errs, errors.New("namespace is empty"))
	}
	for flag, address := range map[string]string{
		"webhook-address": c.WebhookAddress, "health-address": c.HealthAddress, "metrics-address": c.MetricsAddress, "admin-address": c.AdminAddress,
	} {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s %q: %w: give host:port", flag, address, err))
		} else if ip, err := netip.ParseAddr(host); flag == "admin-address" && (err != nil || !ip.IsLoopback()) {
			errs = append(errs, fmt.Errorf("--%s %q is not on loopback: use 127.0.0.1:port", flag, address))
		}
	}
	return errors.Join(errs...)
}
