package agent

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Config is all that the agent is told by flags and environment.
type Config struct {
	NodeName       string
	ControlAddress string
	TrustBundle    string // file
	TokenFile      string
	TrustDomain    string
	// Bootstrap is the namespaces, separated by commas, whose pods do not wait
	// for the control plane; the mesh's own is always one.
	Bootstrap string
	RunDir    string
	ConfDir   string
	BinDir    string
	// Plugin is the CNI plugin's binary in the image; beside the agent's own
	// when empty.
	Plugin   string
	LogLevel string
	// Addresses of the small servers; the admin's must be on loopback.
	Admin, Metrics, Health string
}

// Flags puts the configuration's flags on set, with the environment as their
// defaults. Only what cleanup needs is there when all is false.
func (c *Config) Flags(set *flag.FlagSet, getenv func(string) string, all bool) {
	env := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	set.StringVar(&c.RunDir, "run-dir", names.RunDir, "folder of the CNI socket and of the record of attached pods")
	set.StringVar(&c.ConfDir, "cni-conf-dir", names.CNIConfDir, "the runtime's folder of network configurations")
	set.StringVar(&c.BinDir, "cni-bin-dir", names.CNIBinDir, "the runtime's folder of CNI plugins")
	set.StringVar(&c.LogLevel, "log-level", env("HAUBERK_LOG_LEVEL", "info"), "debug, info, warn or error")
	if !all {
		return
	}
	set.StringVar(&c.NodeName, "node-name", env("HAUBERK_NODE_NAME", ""), "this node's name in Kubernetes")
	set.StringVar(&c.ControlAddress, "control-address", env("HAUBERK_CONTROL_ADDRESS", ""), "host:port of hauberk-control")
	set.StringVar(&c.TrustBundle, "trust-bundle", env("HAUBERK_TRUST_BUNDLE_FILE", ""), "file with the mesh's trust roots, PEM")
	set.StringVar(&c.TokenFile, "token-file", env("HAUBERK_TOKEN_FILE", ""), "file with a service account token of audience "+names.TokenAudience)
	set.StringVar(&c.TrustDomain, "trust-domain", env("HAUBERK_TRUST_DOMAIN", names.TrustDomain), "the mesh's SPIFFE trust domain")
	set.StringVar(&c.Bootstrap, "bootstrap-namespaces", env("HAUBERK_BOOTSTRAP_NAMESPACES", "kube-system"),
		"namespaces, separated by commas, whose pods start without waiting for the control plane; "+names.Namespace+" always is one")
	set.StringVar(&c.Plugin, "cni-plugin", "", "the hauberk-cni binary to install (default: the one beside this program)")
	set.StringVar(&c.Admin, "admin", fmt.Sprintf("127.0.0.1:%d", names.PortAdmin), "address of the admin server, on loopback")
	set.StringVar(&c.Metrics, "metrics", fmt.Sprintf(":%d", names.PortMetrics), "address of the metrics server")
	set.StringVar(&c.Health, "health", fmt.Sprintf(":%d", names.PortHealth), "address of the health server")
}

// Validate says everything that is wrong, and how to mend it.
func (c *Config) Validate() error {
	var errs []error
	for _, f := range []struct{ value, flag, env string }{
		{c.NodeName, "node-name", "HAUBERK_NODE_NAME"}, {c.ControlAddress, "control-address", "HAUBERK_CONTROL_ADDRESS"},
		{c.TrustBundle, "trust-bundle", "HAUBERK_TRUST_BUNDLE_FILE"}, {c.TokenFile, "token-file", "HAUBERK_TOKEN_FILE"},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("--%s is required; set it or %s", f.flag, f.env))
		}
	}
	if _, _, err := net.SplitHostPort(c.ControlAddress); c.ControlAddress != "" && err != nil {
		errs = append(errs, fmt.Errorf("--control-address: %w; it must be host:port", err))
	}
	if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		errs = append(errs, fmt.Errorf("--trust-domain: %w", err))
	}
	if _, err := c.level(); err != nil {
		errs = append(errs, err)
	}
	if host, _, err := net.SplitHostPort(c.Admin); err != nil {
		errs = append(errs, fmt.Errorf("--admin: %w", err))
	} else if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		errs = append(errs, fmt.Errorf("--admin: %s is not a loopback address; the admin server has no authentication", c.Admin))
	}
	for _, a := range []struct{ flag, value string }{{"metrics", c.Metrics}, {"health", c.Health}} {
		if _, _, err := net.SplitHostPort(a.value); err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", a.flag, err))
		}
	}
	for _, d := range []struct{ flag, value string }{{"run-dir", c.RunDir}, {"cni-conf-dir", c.ConfDir}, {"cni-bin-dir", c.BinDir}} {
		if !filepath.IsAbs(d.value) {
			errs = append(errs, fmt.Errorf("--%s: %q is not an absolute path", d.flag, d.value))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("--log-level: %q is none of debug, info, warn, error", c.LogLevel)
	}
	return l, nil
}

// bootstrap reports whether a namespace's pods start without waiting.
func (c *Config) bootstrap(namespace string) bool {
	return namespace == names.Namespace || namespace != "" && slices.Contains(strings.Split(c.Bootstrap, ","), namespace)
}

func (c *Config) socket() string  { return filepath.Join(c.RunDir, filepath.Base(names.CNISocket)) }
func (c *Config) podsDir() string { return filepath.Join(c.RunDir, filepath.Base(names.PodsDir)) }

// plugin is the binary to install.
func (c *Config) plugin() (string, error) {
	if c.Plugin != "" {
		return c.Plugin, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the plugin beside this program: %w; name it with --cni-plugin", err)
	}
	return filepath.Join(filepath.Dir(self), names.CNIType), nil
}
