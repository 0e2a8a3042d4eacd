package patch

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// DefaultRevision is the revision of an installation that names none.
const DefaultRevision = "default"

// Config is what an injected sidecar needs to know, the same for every pod.
type Config struct {
	// Image is the sidecar's image, with a tag or digest.
	Image string
	// ImagePullPolicy may be empty, which leaves the choice to the API server.
	ImagePullPolicy corev1.PullPolicy
	// ControlAddress is the control plane's "ip:port". An address and not a
	// name, so that the mesh does not depend on the cluster's DNS.
	ControlAddress string
	// TrustDomain is the SPIFFE trust domain; empty means names.TrustDomain.
	TrustDomain string
	// TrustBundle holds the roots as PEM.
	TrustBundle string
	// Version and Revision go into the status annotation; a pod or namespace
	// that asks for another revision is left to that revision's injector. An
	// empty revision is DefaultRevision.
	Version  string
	Revision string
	// LogLevel and DrainSeconds are the defaults of the annotations. Empty is
	// "info"; zero is 20 seconds.
	LogLevel     string
	DrainSeconds int
	// Resources are the defaults of the annotations; zero quantities mean 10m
	// and 32Mi requested, 256Mi at most. There is no limit of CPU: throttling
	// a proxy is latency for the application.
	CPURequest    resource.Quantity
	MemoryRequest resource.Quantity
	MemoryLimit   resource.Quantity
}

// withDefaults fills what may be left empty.
func (c Config) withDefaults() Config {
	if c.TrustDomain == "" {
		c.TrustDomain = names.TrustDomain
	}
	if c.Revision == "" {
		c.Revision = DefaultRevision
	}
	if c.LogLevel == "" {
		c.LogLevel = "info"
	}
	if c.DrainSeconds == 0 {
		c.DrainSeconds = 20
	}
	if c.CPURequest.IsZero() {
		c.CPURequest = resource.MustParse("10m")
	}
	if c.MemoryRequest.IsZero() {
		c.MemoryRequest = resource.MustParse("32Mi")
	}
	if c.MemoryLimit.IsZero() {
		c.MemoryLimit = resource.MustParse("256Mi")
	}
	return c
}

// Validate tells everything that is wrong with the configuration.
func (c Config) Validate() error {
	return errors.Join(c.ValidateSettings(), ValidateBundle(c.TrustBundle))
}

// ValidateSettings is Validate without the trust bundle, which an injector does
// not know when it starts.
func (c Config) ValidateSettings() error {
	c = c.withDefaults()
	var errs []error
	if c.Image == "" {
		errs = append(errs, errors.New("proxy image is empty: give the sidecar's image"))
	} else if strings.ContainsAny(c.Image, " \t\r\n") || imageRepository(c.Image) == "" {
		errs = append(errs, fmt.Errorf("proxy image %q is not an image reference: give registry/name:tag", c.Image))
	}
	switch c.ImagePullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		errs = append(errs, fmt.Errorf("image pull policy %q is unknown: use Always, IfNotPresent or Never", c.ImagePullPolicy))
	}
	if a, err := netip.ParseAddrPort(c.ControlAddress); err != nil || a.Port() == 0 || a.Addr().IsUnspecified() {
		errs = append(errs, fmt.Errorf("control address %q is not ip:port: give the address of Service %s", c.ControlAddress, names.Control))
	}
	if msgs := validation.IsDNS1123Subdomain(c.TrustDomain); len(msgs) > 0 {
		errs = append(errs, fmt.Errorf("trust domain %q: %s", c.TrustDomain, strings.Join(msgs, "; ")))
	}
	if msgs := validation.IsValidLabelValue(c.Revision); len(msgs) > 0 {
		errs = append(errs, fmt.Errorf("revision %q: %s", c.Revision, strings.Join(msgs, "; ")))
	}
	if err := checkLogLevel(c.LogLevel); err != nil {
		errs = append(errs, fmt.Errorf("log level: %w", err))
	}
	if c.DrainSeconds < 0 || c.DrainSeconds > maxDrainSeconds {
		errs = append(errs, fmt.Errorf("drain seconds %d: use 0 to %d", c.DrainSeconds, maxDrainSeconds))
	}
	if c.CPURequest.Sign() < 0 || c.MemoryRequest.Sign() < 0 || c.MemoryLimit.Cmp(c.MemoryRequest) < 0 {
		errs = append(errs, fmt.Errorf("resources: cpu %s, memory %s to %s: requests must be positive and no more than the limit",
			&c.CPURequest, &c.MemoryRequest, &c.MemoryLimit))
	}
	return errors.Join(errs...)
}

// ValidateBundle tells whether the text holds at least one certificate in PEM
// and nothing that is not one. It does not check the certificates themselves.
func ValidateBundle(bundle string) error {
	rest, n := []byte(bundle), 0
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("trust bundle holds a PEM block of type %s: only certificates belong there", block.Type)
		}
		n++
	}
	if n == 0 {
		return fmt.Errorf("trust bundle holds no certificate: give the roots of ConfigMap %s, key %s", names.TrustBundleConfigMap, names.TrustBundleKey)
	}
	if s := strings.TrimSpace(string(rest)); s != "" {
		return errors.New("trust bundle ends in something that is not PEM")
	}
	return nil
}

// imageRepository is the reference without tag and digest.
func imageRepository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	slash := strings.LastIndexByte(image, '/')
	if colon := strings.LastIndexByte(image, ':'); colon > slash {
		image = image[:colon]
	}
	return image
}
