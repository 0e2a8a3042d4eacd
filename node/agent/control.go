package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// bundleInterval is between looks at the trust bundle's file, which the kubelet
// replaces; while there is none yet it is looked for more often.
const (
	bundleInterval = 15 * time.Second
	bundleWait     = 500 * time.Millisecond
)

// control is the agent's end of the control plane: its identity and its config
// stream. Both begin once there is a trust bundle, which is not before the
// control plane ran for the first time.
type control struct {
	Config
	log     *slog.Logger
	know    *knowledge
	metrics *metrics

	mu     sync.Mutex
	source *identity.Source  // nil before there is a trust bundle
	client *discovery.Client // nil as long
	last   *hauberkv1.NodeReport
	roots  [][]byte // of the Mesh resource, as set last
}

func newControl(c Config, log *slog.Logger, k *knowledge, m *metrics) *control {
	return &control{Config: c, log: log, know: k, metrics: m}
}

func (c *control) run(ctx context.Context) error {
	bundle, roots, err := c.waitForBundle(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return fmt.Errorf("trust domain: %w", err)
	}
	renewer, err := identity.NewRenewer(identity.RenewerOptions{
		ControlAddress: c.ControlAddress, TokenFile: c.TokenFile, TrustDomain: td, InitialRoots: roots, Log: c.log,
		OnRenewal: c.metrics.renewed,
	})
	if err != nil {
		return err
	}
	client, err := discovery.New(discovery.Options{
		Address: c.ControlAddress, TLS: identity.ClientTLS(renewer.Source(), identity.Expect{ID: identity.ControlID(td)}),
		Handler: c.know, Types: subscribed, Version: version.String(), Log: c.log, Ready: renewer.Source().Ready(),
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.source, c.client = renewer.Source(), client
	if c.last != nil {
		client.Report(c.last)
	}
	c.mu.Unlock()
	return lifecycle.Run(ctx,
		lifecycle.Task{Name: "identity", Run: renewer.Run},
		lifecycle.Task{Name: "config stream", Run: client.Run},
		lifecycle.Task{Name: "trust bundle", Run: func(ctx context.Context) error { return c.watchBundle(ctx, bundle) }},
	)
}

// waitForBundle reads the trust roots, waiting for the file to come.
func (c *control) waitForBundle(ctx context.Context) ([]byte, []*x509.Certificate, error) {
	said := ""
	for {
		data, err := os.ReadFile(c.TrustBundle)
		if err == nil {
			var roots []*x509.Certificate
			if roots, err = identity.ParseRoots(data); err == nil {
				return data, roots, nil
			}
		}
		if said != err.Error() {
			said = err.Error()
			c.log.Warn("waiting for the trust bundle, which hauberk-control publishes when it first runs", "file", c.TrustBundle, "error", err)
		}
		select {
		case <-time.After(bundleWait):
		case <-ctx.Done():
			return nil, nil, nil
		}
	}
}

// watchBundle takes over a trust bundle that changed on disk: when the roots
// changed while the agent could not reach the control plane, the stream can't
// bring them.
func (c *control) watchBundle(ctx context.Context, before []byte) error {
	ticker := time.NewTicker(bundleInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		data, err := os.ReadFile(c.TrustBundle)
		if err != nil || bytes.Equal(data, before) {
			continue
		}
		roots, err := identity.ParseRoots(data)
		if err != nil {
			c.log.Warn("the trust bundle changed and can't be read; the last one stays", "file", c.TrustBundle, "error", err)
			continue
		}
		before = data
		if err := c.source.SetRoots(roots); err != nil {
			c.log.Warn("the trust bundle changed and can't be used; the last one stays", "error", err)
			continue
		}
		c.log.Info("trust bundle changed", "roots", len(roots))
	}
}

// rootsAre takes over the roots of the Mesh resource.
func (c *control) rootsAre(ders [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.source == nil || len(ders) == 0 || slices.EqualFunc(ders, c.roots, bytes.Equal) {
		return
	}
	roots, err := identity.ParseRootsDER(ders)
	if err == nil {
		err = c.source.SetRoots(roots)
	}
	if err != nil {
		c.log.Warn("the control plane's trust roots can't be used; the last ones stay", "error", err)
		return
	}
	c.roots = ders
}

func (c *control) report(r *hauberkv1.NodeReport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = r
	if c.client != nil {
		c.client.Report(r)
	}
}

// controlStatus is the admin's view.
type controlStatus struct {
	Address        string    `json:"address"`
	Connected      bool      `json:"connected"`
	LastSync       time.Time `json:"lastSync,omitzero"`
	Identity       string    `json:"identity,omitempty"`
	IdentityExpiry time.Time `json:"identityExpiry,omitzero"`
}

func (c *control) status() controlStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := controlStatus{Address: c.ControlAddress}
	if c.client != nil {
		s.Connected, s.LastSync = c.client.Connected(), c.client.LastSync()
	}
	if c.source != nil {
		if svid, ok := c.source.Current(); ok {
			s.Identity, s.IdentityExpiry = svid.ID.String(), c.source.Expiry()
		}
	}
	return s
}
