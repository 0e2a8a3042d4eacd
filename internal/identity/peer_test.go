package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hauberk-mesh/hauberk/internal/identity"
)

const uid = "5a1ccd8c-5be2-4f1f-a4c8-6d9f3a4d8e11"

type san struct {
	tag   int
	value string
}

func uri(s string) san { return san{6, s} }
func dns(s string) san { return san{2, s} }

// leaf is a self-signed certificate with exactly these SAN bytes.
func leaf(t *testing.T, change func(*x509.Certificate), sans ...san) (*x509.Certificate, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "any"},
		NotBefore:    time.Now(), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if len(sans) > 0 {
		var values []asn1.RawValue
		for _, s := range sans {
			values = append(values, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: s.tag, Bytes: []byte(s.value)})
		}
		der, err := asn1.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: der}}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return x509.ParseCertificate(der)
}

func TestPeerFromCertificate(t *testing.T) {
	const good = "spiffe://cluster.local/ns/bank/sa/summary"
	id := spiffeid.RequireFromString(good)
	tests := []struct {
		name   string
		sans   []san
		change func(*x509.Certificate)
		want   identity.Peer
		err    string // part of the error of reading; "parse" when Go refuses the certificate
	}{
		{name: "plain", sans: []san{uri(good)}, want: identity.Peer{ID: id}},
		{name: "pod", sans: []san{uri(good), dns(uid + ".pod.hauberk.internal")}, want: identity.Peer{ID: id, PodUID: uid}},
		{name: "pod and node", sans: []san{dns("n1.example.node.hauberk.internal"), uri(good), dns(uid + ".pod.hauberk.internal")},
			want: identity.Peer{ID: id, PodUID: uid, Node: "n1.example"}},
		{name: "no SAN", err: "0 URI SANs"},
		{name: "no URI", sans: []san{dns(uid + ".pod.hauberk.internal")}, err: "0 URI SANs"},
		{name: "two URIs", sans: []san{uri(good), uri("spiffe://cluster.local/ns/bank/sa/admin")}, err: "2 URI SANs"},
		{name: "same URI twice", sans: []san{uri(good), uri(good)}, err: "2 URI SANs"},
		{name: "other scheme", sans: []san{uri("https://cluster.local/ns/bank/sa/summary")}, err: "not a SPIFFE ID"},
		{name: "upper-case scheme", sans: []san{uri("SPIFFE://cluster.local/ns/bank/sa/summary")}, err: "not a SPIFFE ID"},
		{name: "upper-case trust domain", sans: []san{uri("spiffe://Cluster.local/ns/bank/sa/summary")}, err: "not a SPIFFE ID"},
		{name: "userinfo", sans: []san{uri("spiffe://me@cluster.local/ns/bank/sa/summary")}, err: "not a SPIFFE ID"},
		{name: "port", sans: []san{uri("spiffe://cluster.local:443/ns/bank/sa/summary")}, err: "not a SPIFFE ID"},
		{name: "query", sans: []san{uri(good + "?a=b")}, err: "not a SPIFFE ID"},
		{name: "empty query", sans: []san{uri(good + "?")}, err: "not a SPIFFE ID"},
		{name: "empty fragment", sans: []san{uri(good + "#")}, err: "not a SPIFFE ID"},
		{name: "trailing slash", sans: []san{uri(good + "/")}, err: "not a SPIFFE ID"},
		{name: "dot segment", sans: []san{uri("spiffe://cluster.local/ns/bank/../sa/summary")}, err: "not a SPIFFE ID"},
		{name: "percent", sans: []san{uri("spiffe://cluster.local/ns/bank/sa/summ%61ry")}, err: "not a SPIFFE ID"},
		{name: "NUL", sans: []san{uri(good + "\x00.evil")}, err: "parse"},
		{name: "NUL in pod", sans: []san{uri(good), dns(uid + "\x00.pod.hauberk.internal")}, err: "pod or node binding"},
		{name: "no path", sans: []san{uri("spiffe://cluster.local")}, err: "not a workload"},
		{name: "long", sans: []san{uri("spiffe://cluster.local/" + strings.Repeat("a", 2048))}, err: "at most 2048"},
		{name: "pod twice", sans: []san{uri(good), dns(uid + ".pod.hauberk.internal"), dns("other.pod.hauberk.internal")}, err: "pod or node binding"},
		{name: "upper-case pod", sans: []san{uri(good), dns("A.pod.hauberk.internal")}, err: "pod or node binding"},
		{name: "upper-case suffix", sans: []san{uri(good), dns("a.POD.hauberk.internal")}, err: "pod or node binding"},
		{name: "pod of two labels", sans: []san{uri(good), dns("a.b.pod.hauberk.internal")}, err: "pod or node binding"},
		{name: "empty pod", sans: []san{uri(good), dns(".pod.hauberk.internal")}, err: "pod or node binding"},
		{name: "wildcard", sans: []san{uri(good), dns("*.pod.hauberk.internal")}, err: "pod or node binding"},
		{name: "foreign DNS", sans: []san{uri(good), dns("example.com")}, err: "pod or node binding"},
		{name: "email", sans: []san{uri(good), {1, "a@example.com"}}, err: "of a kind"},
		{name: "address", sans: []san{uri(good), {7, "\x0a\x00\x00\x01"}}, err: "of a kind"},
		{name: "CA", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.IsCA = true }, err: "is a CA"},
		{name: "signs certificates", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign; c.IsCA = true }, err: "is a CA"},
		{name: "signs CRLs", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, err: "must not"},
		{name: "no digital signature", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, err: "digitalSignature"},
		{name: "no key usage", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.KeyUsage = 0 }, err: "digitalSignature"},
		{name: "client only", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, err: "extended key usage"},
		{name: "server only", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, err: "extended key usage"},
		{name: "any usage", sans: []san{uri(good)}, change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, err: "extended key usage"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cert, err := leaf(t, test.change, test.sans...)
			if test.err == "parse" {
				if err == nil {
					t.Fatal("the certificate parses; PeerFromCertificate is what must refuse it now")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := identity.PeerFromCertificate(cert)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got error %v, want one with %q", err, test.err)
				}
				if got != (identity.Peer{}) {
					t.Errorf("got peer %v with the error", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := identity.PeerFromCertificate(nil); err == nil {
		t.Error("no certificate names a peer")
	}
}

func TestServiceAccount(t *testing.T) {
	tests := []struct {
		id, namespace, name string
		ok                  bool
	}{
		{"spiffe://td/ns/bank/sa/summary", "bank", "summary", true},
		{"spiffe://td/ns/bank/sa/a.b", "bank", "a.b", true},
		{"spiffe://td/sa/bank/ns/summary", "", "", false},
		{"spiffe://td/ns/bank/sa/summary/x", "", "", false},
		{"spiffe://td/x/ns/bank/sa/summary", "", "", false},
		{"spiffe://td", "", "", false},
	}
	for _, test := range tests {
		namespace, name, ok := identity.Peer{ID: spiffeid.RequireFromString(test.id)}.ServiceAccount()
		if namespace != test.namespace || name != test.name || ok != test.ok {
			t.Errorf("%s: got %q %q %v, want %q %q %v", test.id, namespace, name, ok, test.namespace, test.name, test.ok)
		}
	}
	if _, _, ok := (identity.Peer{}).ServiceAccount(); ok {
		t.Error("nobody has a service account")
	}
}

func FuzzPeerFromCertificate(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/a/sa/b", uid+".pod.hauberk.internal")
	f.Add("spiffe://cluster.local/ns/a/sa/b#", "a.node.hauberk.internal")
	f.Fuzz(func(t *testing.T, u, d string) {
		if len(u)+len(d) > 4096 {
			t.Skip("only long names are left out")
		}
		cert, err := leaf(t, nil, uri(u), dns(d))
		if err != nil {
			return
		}
		peer, err := identity.PeerFromCertificate(cert)
		if err != nil {
			return
		}
		// Whoever is accepted is named byte for byte.
		if peer.ID.String() != u {
			t.Errorf("URI %q reads as %q", u, peer.ID)
		}
		if peer.PodUID+".pod.hauberk.internal" != d && peer.Node+".node.hauberk.internal" != d {
			t.Errorf("DNS SAN %q reads as pod %q, node %q", d, peer.PodUID, peer.Node)
		}
	})
}
