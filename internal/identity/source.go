package identity

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ErrNoSVID is what an identity is before its first SVID, or after its last one
// expired.
var ErrNoSVID = errors.New("no valid SVID")

// maxChain bounds how many certificates a peer may present.
const maxChain = 8

// Source holds the current SVID and the trust roots of one trust domain. All
// methods are safe for concurrent use. It implements x509svid.Source and
// x509bundle.Source of go-spiffe.
type Source struct {
	// Set once.
	trustDomain spiffeid.TrustDomain
	ready       chan struct{} // closed by the first Set
	files       *files        // nil unless the source reads files

	current atomic.Pointer[snapshot] // never nil

	mu      sync.Mutex    // serialises writers of current
	updated chan struct{} // closed and replaced at each change; guarded by mu
}

// snapshot is immutable.
type snapshot struct {
	svid   *x509svid.SVID   // nil before the first
	cert   *tls.Certificate // of svid
	roots  []*x509.Certificate
	pool   *x509.CertPool
	bundle *x509bundle.Bundle
}

// NewSource returns a source without an SVID that trusts roots, of which there
// may be none yet: then it trusts nobody.
func NewSource(td spiffeid.TrustDomain, roots []*x509.Certificate) (*Source, error) {
	if td.IsZero() {
		return nil, errors.New("trust domain is empty")
	}
	snap, err := withRoots(snapshot{}, td, roots)
	if err != nil {
		return nil, err
	}
	s := &Source{trustDomain: td, ready: make(chan struct{}), updated: make(chan struct{})}
	s.current.Store(snap)
	return s, nil
}

// withRoots returns a copy of snap that trusts roots.
func withRoots(snap snapshot, td spiffeid.TrustDomain, roots []*x509.Certificate) (*snapshot, error) {
	pool := x509.NewCertPool()
	for i, root := range roots {
		if root == nil || !root.BasicConstraintsValid || !root.IsCA {
			return nil, fmt.Errorf("trust root %d of %s is not a CA certificate", i, td)
		}
		pool.AddCert(root)
	}
	snap.roots = slices.Clone(roots)
	snap.pool = pool
	snap.bundle = x509bundle.FromX509Authorities(td, roots)
	return &snap, nil
}

// TrustDomain is the one that the source's peers must be of.
func (s *Source) TrustDomain() spiffeid.TrustDomain { return s.trustDomain }

// Ready is closed when the source has its first SVID.
func (s *Source) Ready() <-chan struct{} { return s.ready }

// Updated returns a channel that is closed at the next change of the SVID or of
// the roots. Ask for it before reading what may change.
func (s *Source) Updated() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.updated
}

// Current returns the SVID, valid or expired; false before the first.
func (s *Source) Current() (*x509svid.SVID, bool) {
	snap := s.load()
	return snap.svid, snap.svid != nil
}

// Expiry is when the current SVID ends; the zero time before the first.
func (s *Source) Expiry() time.Time {
	snap := s.load()
	if snap.svid == nil {
		return time.Time{}
	}
	return snap.svid.Certificates[0].NotAfter
}

// Roots returns the trust roots.
func (s *Source) Roots() []*x509.Certificate { return slices.Clone(s.load().roots) }

// Set replaces the SVID and, unless roots is empty, the trust roots in one step.
// The SVID must be of the source's trust domain, chain to the roots and hold the
// key of its leaf; otherwise nothing changes.
func (s *Source) Set(svid *x509svid.SVID, roots []*x509.Certificate) error {
	if svid == nil || len(svid.Certificates) == 0 || svid.PrivateKey == nil {
		return errors.New("svid is empty")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.current.Load()
	if len(roots) > 0 {
		snap, err := withRoots(next, s.trustDomain, roots)
		if err != nil {
			return err
		}
		next = *snap
	}
	peer, err := verifyChain(svid.Certificates, &next, s.trustDomain, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return fmt.Errorf("own svid: %w", err)
	}
	if peer.ID != svid.ID {
		return fmt.Errorf("own svid: certificate is of %s, not of %s", peer.ID, svid.ID)
	}
	public, ok := svid.PrivateKey.Public().(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !public.Equal(svid.Certificates[0].PublicKey) {
		return errors.New("own svid: private key does not belong to the certificate")
	}
	next.svid = svid
	next.cert = &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, cert := range svid.Certificates {
		next.cert.Certificate = append(next.cert.Certificate, cert.Raw)
	}
	s.publish(&next)
	return nil
}

// SetRoots replaces the trust roots. An empty list is refused, because it would
// cut the process off from what could mend it. The SVID stays even when it does
// not chain to the new roots.
func (s *Source) SetRoots(roots []*x509.Certificate) error {
	if len(roots) == 0 {
		return fmt.Errorf("trust roots of %s: the list is empty", s.trustDomain)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	if slices.EqualFunc(old.roots, roots, func(a, b *x509.Certificate) bool {
		return b != nil && bytes.Equal(a.Raw, b.Raw)
	}) {
		return nil
	}
	next, err := withRoots(*old, s.trustDomain, roots)
	if err != nil {
		return err
	}
	s.publish(next)
	return nil
}

// publish requires mu.
func (s *Source) publish(next *snapshot) {
	s.current.Store(next)
	if next.svid != nil {
		select {
		case <-s.ready:
		default:
			close(s.ready)
		}
	}
	close(s.updated)
	s.updated = make(chan struct{})
}

// load returns the snapshot to use now.
func (s *Source) load() *snapshot {
	if s.files != nil {
		s.files.refresh(s)
	}
	return s.current.Load()
}

// valid returns the snapshot if its SVID is valid now.
func (s *Source) valid() (*snapshot, error) {
	snap := s.load()
	if snap.svid == nil {
		return nil, fmt.Errorf("%w: none was issued yet", ErrNoSVID)
	}
	if end := snap.svid.Certificates[0].NotAfter; time.Now().After(end) {
		if s.files != nil {
			if err := s.files.lastError(); err != nil {
				return nil, fmt.Errorf("%w: it expired at %s and reading a new one failed: %w", ErrNoSVID, end.Format(time.RFC3339), err)
			}
		}
		return nil, fmt.Errorf("%w: it expired at %s and was not renewed", ErrNoSVID, end.Format(time.RFC3339))
	}
	return snap, nil
}

// GetX509SVID returns the SVID while it is valid. The name is go-spiffe's.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	snap, err := s.valid()
	if err != nil {
		return nil, err
	}
	return snap.svid, nil
}

// GetX509BundleForTrustDomain returns the roots. The name is go-spiffe's.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != s.trustDomain {
		return nil, fmt.Errorf("no trust roots for trust domain %q, only for %q", td, s.trustDomain)
	}
	return s.load().bundle, nil
}

// VerifyPeer verifies a chain, leaf first, against the roots and the time of
// now, and returns whom it names. usage is what the peer is to this process:
// clientAuth for a client, serverAuth for a server.
func (s *Source) VerifyPeer(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Peer, error) {
	return verifyChain(chain, s.load(), s.trustDomain, usage)
}

func verifyChain(chain []*x509.Certificate, snap *snapshot, td spiffeid.TrustDomain, usage x509.ExtKeyUsage) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, ErrNoPeer
	}
	if len(chain) > maxChain {
		return Peer{}, fmt.Errorf("peer presents %d certificates; at most %d are read", len(chain), maxChain)
	}
	peer, err := PeerFromCertificate(chain[0])
	if err != nil {
		return Peer{}, err
	}
	if !peer.ID.MemberOf(td) {
		return Peer{}, fmt.Errorf("peer %s is not of trust domain %s", peer.ID, td)
	}
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         snap.pool,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}); err != nil {
		return Peer{}, fmt.Errorf("certificate of %s: %w", peer.ID, err)
	}
	return peer, nil
}
