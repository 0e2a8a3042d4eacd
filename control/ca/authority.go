package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

const (
	organization = "Hauberk" // of subjects; it means nothing

	// DefaultTTL of SVIDs; renewed at half of it, so that half a day without
	// the control plane harms nothing.
	DefaultTTL = 24 * time.Hour
	// DefaultBackdate of SVIDs allows for clocks that are behind the CA's.
	DefaultBackdate = 2 * time.Minute

	minTTL      = time.Minute
	maxTTL      = 90 * 24 * time.Hour
	minBackdate = time.Minute
	maxBackdate = 5 * time.Minute

	// auditInterval is how often the Secret and the ConfigMap are looked at.
	auditInterval = 30 * time.Second
)

// Options of an Authority.
type Options struct {
	Client      kubernetes.Interface
	Namespace   string // of the Secret and the ConfigMap; "" is hauberk-system
	TrustDomain spiffeid.TrustDomain
	TTL         time.Duration // of SVIDs; 0 is DefaultTTL
	Backdate    time.Duration // of SVIDs, 1 to 5 minutes; 0 is DefaultBackdate
	// PodUID of this replica, which its own SVID is bound to; "" binds it to
	// none.
	PodUID string
	Log    *slog.Logger
}

func (o *Options) complete() error {
	if o.Namespace == "" {
		o.Namespace = names.Namespace
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.Backdate == 0 {
		o.Backdate = DefaultBackdate
	}
	switch {
	case o.Client == nil:
		return errors.New("ca: client of the API server is missing")
	case o.TrustDomain.IsZero():
		return errors.New("ca: trust domain is empty")
	case o.Log == nil:
		return errors.New("ca: logger is missing")
	case o.TTL < minTTL || o.TTL > maxTTL:
		return fmt.Errorf("ca: SVIDs of %s; between %s and %s is possible", o.TTL, minTTL, maxTTL)
	case o.Backdate < minBackdate || o.Backdate > maxBackdate:
		return fmt.Errorf("ca: SVIDs backdated by %s; between %s and %s is possible", o.Backdate, minBackdate, maxBackdate)
	}
	return nil
}

// Authority signs SVIDs by the trust domain's root. Its methods are safe for
// concurrent use.
type Authority struct {
	opts Options
	root *root            // set once
	self *identity.Source // the control plane's own
}

// Open loads the root, making it if there is none, writes the trust bundle, and
// signs the control plane's own SVID. Run keeps the latter two.
func Open(ctx context.Context, opts Options) (*Authority, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	root, created, err := ensureRoot(ctx, opts.Client, opts.Namespace, opts.TrustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	if created {
		opts.Log.Info("made a new root", "trust_domain", opts.TrustDomain.Name(), "expires", root.cert.NotAfter)
	}
	a := &Authority{opts: opts, root: root}
	if a.self, err = identity.NewSource(opts.TrustDomain, a.Roots()); err != nil {
		return nil, err
	}
	if err := a.renewSelf(); err != nil {
		return nil, err
	}
	if err := a.publishBundle(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// TrustDomain is what the authority signs for.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.opts.TrustDomain }

// Roots are what peers must trust.
func (a *Authority) Roots() []*x509.Certificate { return []*x509.Certificate{a.root.cert} }

// RootsPEM is the trust bundle.
func (a *Authority) RootsPEM() []byte { return bytes.Clone(a.root.pem) }

// SelfSource is the control plane's own identity, identity.ControlID; it is
// ready, and Run renews it.
func (a *Authority) SelfSource() *identity.Source { return a.self }

// Sign signs an SVID of peer for a public key and returns its chain, leaf first,
// without the root. The life is the configured one, shortened to the root's.
func (a *Authority) Sign(peer identity.Peer, public crypto.PublicKey) ([]*x509.Certificate, error) {
	if peer.ID.IsZero() || !peer.ID.MemberOf(a.opts.TrustDomain) {
		return nil, fmt.Errorf("sign for %q: it is not of trust domain %s", peer.ID, a.opts.TrustDomain)
	}
	if err := checkKey(public); err != nil {
		return nil, fmt.Errorf("sign for %s: %w", peer.ID, err)
	}
	var dns []string
	if peer.PodUID != "" {
		san, err := identity.PodSAN(peer.PodUID)
		if err != nil {
			return nil, fmt.Errorf("sign for %s: %w", peer.ID, err)
		}
		dns = append(dns, san)
	}
	if peer.Node != "" {
		san, err := identity.NodeSAN(peer.Node)
		if err != nil {
			return nil, fmt.Errorf("sign for %s: %w", peer.ID, err)
		}
		dns = append(dns, san)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	end := now.Add(a.opts.TTL)
	if end.After(a.root.cert.NotAfter) {
		end = a.root.cert.NotAfter
	}
	if !now.Before(end) {
		return nil, fmt.Errorf("sign for %s: the root expired at %s", peer.ID, end.Format(time.RFC3339))
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{organization}},
		URIs:                  []*url.URL{peer.ID.URL()},
		DNSNames:              dns,
		NotBefore:             now.Add(-a.opts.Backdate),
		NotAfter:              end,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root.cert, public, a.root.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", peer.ID, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", peer.ID, err)
	}
	// What we sign is what we accept.
	if got, err := identity.PeerFromCertificate(leaf); err != nil || got != peer {
		return nil, fmt.Errorf("sign for %s: the certificate would read as %s (%v)", peer, got, err)
	}
	return []*x509.Certificate{leaf}, nil
}

// Run renews the control plane's own SVID and keeps the trust bundle in step,
// until ctx ends; then it returns nil.
func (a *Authority) Run(ctx context.Context) error {
	renewAt := a.selfDue()
	healthy := true
	for {
		timer := time.NewTimer(auditInterval/2 + mathrand.N(auditInterval))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if !time.Now().Before(renewAt) {
			if err := a.renewSelf(); err != nil {
				a.opts.Log.Error("the control plane's own identity was not renewed", "error", err, "expires", a.self.Expiry())
			} else {
				renewAt = a.selfDue()
			}
		}
		if err := a.audit(ctx); err != nil && ctx.Err() == nil {
			a.opts.Log.Warn("trust bundle not kept in step", "error", err)
			healthy = false
		} else if !healthy {
			healthy = true
			a.opts.Log.Info("trust bundle is in step again")
		}
	}
}

// selfDue is when to renew the own SVID: at half of what is left of its life.
func (a *Authority) selfDue() time.Time {
	now := time.Now()
	return now.Add(a.self.Expiry().Sub(now) / 2)
}

func (a *Authority) renewSelf() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	peer := identity.Peer{ID: identity.ControlID(a.opts.TrustDomain), PodUID: a.opts.PodUID}
	chain, err := a.Sign(peer, key.Public())
	if err != nil {
		return err
	}
	return a.self.Set(&x509svid.SVID{ID: peer.ID, Certificates: chain, PrivateKey: key}, nil)
}

// audit repairs the trust bundle, unless the Secret no longer holds the root
// that this process signs with: then somebody replaced it, and the replicas,
// which would each publish their own, keep their hands off.
func (a *Authority) audit(ctx context.Context) error {
	secret, err := a.opts.Client.CoreV1().Secrets(a.opts.Namespace).Get(ctx, names.CASecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("CA secret %s/%s is gone: this process goes on signing with the root in its memory; restore it, or run `hauberk upgrade` and restart the control plane to begin with a new root",
			a.opts.Namespace, names.CASecret)
	}
	if err != nil {
		return fmt.Errorf("CA secret %s/%s: %w", a.opts.Namespace, names.CASecret, err)
	}
	now, err := parseRoot(secret, a.opts.TrustDomain, time.Now())
	if err != nil {
		return fmt.Errorf("CA secret %s/%s: %w; this process goes on signing with the root in its memory", a.opts.Namespace, names.CASecret, err)
	}
	if !now.cert.Equal(a.root.cert) {
		return fmt.Errorf("CA secret %s/%s holds another root: this process goes on signing with the one in its memory; restart the control plane to use the new one",
			a.opts.Namespace, names.CASecret)
	}
	return a.publishBundle(ctx)
}

// publishBundle makes the ConfigMap hold the trust bundle. What else it holds is
// left alone.
func (a *Authority) publishBundle(ctx context.Context) error {
	configMaps := a.opts.Client.CoreV1().ConfigMaps(a.opts.Namespace)
	want := string(a.root.pem)
	const attempts = 5
	var err error
	for range attempts {
		var have *corev1.ConfigMap
		have, err = configMaps.Get(ctx, names.TrustBundleConfigMap, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			_, err = configMaps.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: names.TrustBundleConfigMap, Namespace: a.opts.Namespace, Labels: labels()},
				Data:       map[string]string{names.TrustBundleKey: want},
			}, metav1.CreateOptions{})
		case err == nil && have.Data[names.TrustBundleKey] == want:
			return nil
		case err == nil:
			have = have.DeepCopy()
			if have.Data == nil {
				have.Data = make(map[string]string)
			}
			have.Data[names.TrustBundleKey] = want
			if _, err = configMaps.Update(ctx, have, metav1.UpdateOptions{}); err == nil {
				a.opts.Log.Info("trust bundle was out of step and is repaired", "config_map", names.TrustBundleConfigMap)
			}
		}
		// Another replica may have been quicker, with the same content.
		if !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("trust bundle %s/%s: %w", a.opts.Namespace, names.TrustBundleConfigMap, err)
	}
	return nil
}
