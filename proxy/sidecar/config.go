package sidecar

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/proxy/probe"
)

// defaultDrain bounds how long requests in flight may take after SIGTERM.
const defaultDrain = 20 * time.Second

// Config is what the injector says by environment.
type Config struct {
	ControlAddress string
	TrustDomain    spiffeid.TrustDomain
	Roots          []*x509.Certificate
	TokenFile      string
	PodUID         string
	PodIPs         []netip.Addr
	PodName        string
	Namespace      string
	NodeName       string
	Probes         probe.Probes
	LogLevel       slog.Level
	Drain          time.Duration
}

// ConfigFromEnvironment reads the variables that ARCHITECTURE.md lists. All
// that is wrong is told at once.
func ConfigFromEnvironment(getenv func(string) string) (Config, error) {
	var c Config
	var errs []error
	need := func(name string) string {
		v := getenv(name)
		if v == "" {
			errs = append(errs, fmt.Errorf("%s is empty: the injector sets it", name))
		}
		return v
	}
	fail := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	var err error
	c.ControlAddress = need("HAUBERK_CONTROL_ADDRESS")
	if c.ControlAddress != "" {
		_, err = netip.ParseAddrPort(c.ControlAddress)
		fail("HAUBERK_CONTROL_ADDRESS", err)
	}
	td := getenv("HAUBERK_TRUST_DOMAIN")
	if td == "" {
		td = names.TrustDomain
	}
	c.TrustDomain, err = spiffeid.TrustDomainFromString(td)
	fail("HAUBERK_TRUST_DOMAIN", err)
	if bundle := need("HAUBERK_TRUST_BUNDLE"); bundle != "" {
		c.Roots, err = identity.ParseRoots([]byte(bundle))
		fail("HAUBERK_TRUST_BUNDLE", err)
	}
	c.TokenFile = need("HAUBERK_TOKEN_FILE")
	c.PodUID = need("HAUBERK_POD_UID")
	c.PodName, c.Namespace, c.NodeName = getenv("HAUBERK_POD_NAME"), getenv("HAUBERK_POD_NAMESPACE"), getenv("HAUBERK_NODE_NAME")
	for _, s := range strings.FieldsFunc(getenv("HAUBERK_POD_IPS"), func(r rune) bool { return r == ',' || r == ' ' }) {
		a, err := netip.ParseAddr(s)
		fail("HAUBERK_POD_IPS", err)
		c.PodIPs = append(c.PodIPs, a.Unmap())
	}
	c.Probes, err = probe.Parse(getenv("HAUBERK_PROBES"))
	fail("HAUBERK_PROBES", err)
	if v := getenv("HAUBERK_LOG_LEVEL"); v != "" {
		fail("HAUBERK_LOG_LEVEL", c.LogLevel.UnmarshalText([]byte(v)))
	}
	c.Drain = defaultDrain
	if v := getenv("HAUBERK_DRAIN_SECONDS"); v != "" {
		n, err := strconv.Atoi(v)
		if err == nil && (n < 0 || n > 3600) {
			err = fmt.Errorf("%d is not between 0 and 3600", n)
		}
		fail("HAUBERK_DRAIN_SECONDS", err)
		c.Drain = time.Duration(n) * time.Second
	}
	return c, errors.Join(errs...)
}
