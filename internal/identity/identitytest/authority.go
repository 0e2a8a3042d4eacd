// Package identitytest has a certificate authority in memory that mints SVIDs
// for tests. It owns no product behaviour: what it mints is as control/ca
// mints it unless a test asks for something broken.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/hauberk-mesh/hauberk/internal/identity"
)

// TrustDomain is what NewAuthority uses when it is given none.
const TrustDomain = "cluster.local"

// Authority is a root in memory.
type Authority struct {
	TrustDomain spiffeid.TrustDomain
	Root        *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes a root of the trust domain; "" is TrustDomain.
func NewAuthority(t testing.TB, trustDomain string) *Authority {
	t.Helper()
	if trustDomain == "" {
		trustDomain = TrustDomain
	}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{CommonName: "test root " + trustDomain},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{TrustDomain: td, Root: root, key: key}
}

// Roots is the trust bundle.
func (a *Authority) Roots() []*x509.Certificate { return []*x509.Certificate{a.Root} }

// RootsPEM is the trust bundle in PEM.
func (a *Authority) RootsPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root.Raw})
}

// ID is the SPIFFE ID of a service account.
func (a *Authority) ID(t testing.TB, namespace, serviceAccount string) spiffeid.ID {
	t.Helper()
	id, err := identity.WorkloadID(a.TrustDomain, namespace, serviceAccount)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Template is the certificate of peer as the product's CA would sign it: from a
// minute ago for an hour. Tests change it to break it.
func (a *Authority) Template(t testing.TB, peer identity.Peer) *x509.Certificate {
	t.Helper()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{Organization: []string{"Hauberk"}},
		URIs:                  []*url.URL{peer.ID.URL()},
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(time.Hour),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if peer.PodUID != "" {
		san, err := identity.PodSAN(peer.PodUID)
		if err != nil {
			t.Fatal(err)
		}
		template.DNSNames = append(template.DNSNames, san)
	}
	if peer.Node != "" {
		san, err := identity.NodeSAN(peer.Node)
		if err != nil {
			t.Fatal(err)
		}
		template.DNSNames = append(template.DNSNames, san)
	}
	return template
}

// Sign signs a template for a public key and returns the certificate.
func (a *Authority) Sign(t testing.TB, template *x509.Certificate, public any) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.Root, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// SVID mints an SVID of peer that is valid for ttl from now.
func (a *Authority) SVID(t testing.TB, peer identity.Peer, ttl time.Duration) *x509svid.SVID {
	t.Helper()
	key := newKey(t)
	template := a.Template(t, peer)
	template.NotAfter = time.Now().Add(ttl)
	return &x509svid.SVID{
		ID:           peer.ID,
		Certificates: []*x509.Certificate{a.Sign(t, template, key.Public())},
		PrivateKey:   key,
	}
}

// Source returns a ready source of peer that trusts this root and the others.
func (a *Authority) Source(t testing.TB, peer identity.Peer, others ...*Authority) *identity.Source {
	t.Helper()
	roots := a.Roots()
	for _, other := range others {
		roots = append(roots, other.Root)
	}
	source, err := identity.NewSource(a.TrustDomain, roots)
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Set(a.SVID(t, peer, time.Hour), nil); err != nil {
		t.Fatal(err)
	}
	return source
}

// Workload returns a ready source of a pod of a service account.
func (a *Authority) Workload(t testing.TB, namespace, serviceAccount, podUID string) *identity.Source {
	t.Helper()
	return a.Source(t, identity.Peer{ID: a.ID(t, namespace, serviceAccount), PodUID: podUID})
}

// NodeAgent returns a ready source of the node agent of a node.
func (a *Authority) NodeAgent(t testing.TB, node, podUID string) *identity.Source {
	t.Helper()
	return a.Source(t, identity.Peer{ID: identity.NodeID(a.TrustDomain), PodUID: podUID, Node: node})
}

// Control returns a ready source of the control plane.
func (a *Authority) Control(t testing.TB) *identity.Source {
	t.Helper()
	return a.Source(t, identity.Peer{ID: identity.ControlID(a.TrustDomain)})
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}
