// Package server wires the control plane into one process: the CA and the
// config stream on one port, the sources they need, status, health, metrics and
// the loopback admin. It owns configuration and the order of starting; the
// behaviour is its parts'.
package server

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hauberk-mesh/hauberk/control/ca"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Config is what an operator sets, by flag or environment.
type Config struct {
	// Kubeconfig is a file; empty means the pod's own service account.
	Kubeconfig  string
	TrustDomain string
	// CertificateTTL is the life of the SVIDs that are signed.
	CertificateTTL time.Duration

	GRPCAddress    string
	MetricsAddress string
	HealthAddress  string
	AdminAddress   string // loopback only

	// PodName and PodUID of this replica; PodName identifies it to the others.
	PodName, PodUID string

	LogLevel slog.Level
}

// ParseConfig reads flags, whose defaults are taken from the environment
// (HAUBERK_TRUST_DOMAIN, HAUBERK_CERTIFICATE_TTL, HAUBERK_LOG_LEVEL, POD_NAME,
// POD_UID), and validates. flag.ErrHelp means that help was asked for.
func ParseConfig(args []string, env func(string) string) (Config, error) {
	or := func(name, otherwise string) string {
		if v := env(name); v != "" {
			return v
		}
		return otherwise
	}
	var c Config
	var ttl, level string
	fs := flag.NewFlagSet("hauberk-control", flag.ContinueOnError)
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig file; empty uses the pod's service account")
	fs.StringVar(&c.TrustDomain, "trust-domain", or("HAUBERK_TRUST_DOMAIN", names.TrustDomain), "trust domain of all identities")
	fs.StringVar(&ttl, "certificate-ttl", or("HAUBERK_CERTIFICATE_TTL", ca.DefaultTTL.String()), "life of the certificates that are signed")
	fs.StringVar(&c.GRPCAddress, "grpc-address", fmt.Sprintf(":%d", names.PortControl), "address of the CA and the config stream")
	fs.StringVar(&c.MetricsAddress, "metrics-address", fmt.Sprintf(":%d", names.PortMetrics), "address of /metrics")
	fs.StringVar(&c.HealthAddress, "health-address", fmt.Sprintf(":%d", names.PortHealth), "address of /healthz and /readyz")
	fs.StringVar(&c.AdminAddress, "admin-address", fmt.Sprintf("127.0.0.1:%d", names.PortAdmin), "loopback address of the admin pages")
	fs.StringVar(&c.PodName, "pod-name", env("POD_NAME"), "name of this replica")
	fs.StringVar(&c.PodUID, "pod-uid", env("POD_UID"), "UID of this replica's pod")
	fs.StringVar(&level, "log-level", or("HAUBERK_LOG_LEVEL", "info"), "debug, info, warn or error")
	var usage strings.Builder
	fs.SetOutput(&usage)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return c, fmt.Errorf("%w\n%s", err, usage.String())
		}
		return c, err
	}
	fs.SetOutput(io.Discard)
	if fs.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q: there are flags only", fs.Arg(0))
	}
	var err error
	if c.CertificateTTL, err = time.ParseDuration(ttl); err != nil {
		return c, fmt.Errorf("certificate-ttl %q: write a duration such as 24h", ttl)
	}
	if err := c.LogLevel.UnmarshalText([]byte(level)); err != nil {
		return c, fmt.Errorf("log-level %q: use debug, info, warn or error", level)
	}
	return c, c.Validate()
}

// Validate says what is wrong and how to mend it.
func (c Config) Validate() error {
	if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		return fmt.Errorf("trust-domain %q: %w", c.TrustDomain, err)
	}
	if c.CertificateTTL < time.Minute {
		return fmt.Errorf("certificate-ttl %s is too short: at least a minute", c.CertificateTTL)
	}
	for name, address := range map[string]string{
		"grpc-address": c.GRPCAddress, "metrics-address": c.MetricsAddress, "health-address": c.HealthAddress, "admin-address": c.AdminAddress,
	} {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("%s %q: write host:port or :port", name, address)
		}
	}
	host, _, _ := net.SplitHostPort(c.AdminAddress)
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("admin-address %q is not on loopback: its pages tell everything", c.AdminAddress)
	}
	return nil
}
