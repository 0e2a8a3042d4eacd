package identity

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Peer is what a verified certificate says of who holds its key. The zero
// Peer is nobody.
type Peer struct {
	ID spiffeid.ID
	// PodUID is the pod that the certificate is bound to; empty when it is
	// bound to none.
	PodUID string
	// Node is the node that a node agent's certificate is bound to; empty
	// for everybody else.
	Node string
}

// ServiceAccount returns the namespace and the service account of an ID of the
// form spiffe://<td>/ns/<namespace>/sa/<service account>; ok is false for
// every other form.
func (p Peer) ServiceAccount() (namespace, name string, ok bool) {
	parts := strings.Split(p.ID.Path(), "/")
	if len(parts) != 5 || parts[0] != "" || parts[1] != "ns" || parts[3] != "sa" {
		return "", "", false
	}
	return parts[2], parts[4], true
}

// String names the peer for logs.
func (p Peer) String() string {
	s := p.ID.String()
	if p.PodUID != "" {
		s += " pod " + p.PodUID
	}
	if p.Node != "" {
		s += " node " + p.Node
	}
	return s
}

// WorkloadID is the SPIFFE ID of a service account.
func WorkloadID(td spiffeid.TrustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	id, err := spiffeid.FromSegments(td, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("spiffe id of service account %s/%s: %w", namespace, serviceAccount, err)
	}
	return id, nil
}

// ControlID is the SPIFFE ID of the control plane: what clients of the CA and
// of the config stream expect.
func ControlID(td spiffeid.TrustDomain) spiffeid.ID { return meshID(td, names.Control) }

// NodeID is the SPIFFE ID of the node agents; which node one speaks for is in
// Peer.Node.
func NodeID(td spiffeid.TrustDomain) spiffeid.ID { return meshID(td, names.Node) }

// meshID is the zero ID, which matches nothing, for the zero trust domain.
func meshID(td spiffeid.TrustDomain, serviceAccount string) spiffeid.ID {
	id, err := spiffeid.FromSegments(td, "ns", names.Namespace, "sa", serviceAccount)
	if td.IsZero() || err != nil {
		return spiffeid.ID{}
	}
	return id
}

// PodSAN is the DNS SAN that binds a certificate to a pod.
func PodSAN(uid string) (string, error) {
	if !dnsLabel(uid) {
		return "", fmt.Errorf("pod uid %q is not a DNS label", uid)
	}
	return uid + names.PodSANSuffix, nil
}

// NodeSAN is the DNS SAN that binds a node agent's certificate to its node.
func NodeSAN(node string) (string, error) {
	if !dnsSubdomain(node) {
		return "", fmt.Errorf("node name %q is not a DNS subdomain", node)
	}
	return node + names.NodeSANSuffix, nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// Context-specific tags of GeneralName, RFC 5280 section 4.2.1.6.
const (
	tagDNSName = 2
	tagURI     = 6
)

// maxSPIFFEID is the longest SPIFFE ID of the standard, in bytes.
const maxSPIFFEID = 2048

// PeerFromCertificate reads a leaf strictly: one URI SAN that is a well-formed
// SPIFFE ID with a path, at most one pod and one node binding, no other SAN; no
// CA; key usage digitalSignature without signing of certificates; extended key
// usage both clientAuth and serverAuth. It does not verify the chain.
//
// The SANs are read from the extension itself and not from cert.URIs: a parsed
// URL forgets what was written (scheme in upper case, an empty fragment).
func PeerFromCertificate(cert *x509.Certificate) (Peer, error) {
	if cert == nil {
		return Peer{}, errors.New("no certificate")
	}
	switch {
	case cert.IsCA:
		return Peer{}, errors.New("certificate is a CA, not a leaf")
	case cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return Peer{}, errors.New("certificate may sign certificates or CRLs; a leaf must not")
	case cert.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return Peer{}, errors.New("certificate lacks key usage digitalSignature")
	case !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth),
		!slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		return Peer{}, errors.New("certificate lacks extended key usage clientAuth or serverAuth")
	}
	uris, dns, err := subjectAltNames(cert)
	if err != nil {
		return Peer{}, err
	}
	if len(uris) != 1 {
		return Peer{}, fmt.Errorf("certificate has %d URI SANs; an SVID has exactly one", len(uris))
	}
	if len(uris[0]) > maxSPIFFEID {
		return Peer{}, fmt.Errorf("URI SAN has %d bytes; a SPIFFE ID has at most %d", len(uris[0]), maxSPIFFEID)
	}
	id, err := spiffeid.FromString(uris[0])
	if err != nil {
		return Peer{}, fmt.Errorf("URI SAN %q is not a SPIFFE ID: %w", uris[0], err)
	}
	if id.Path() == "" {
		return Peer{}, fmt.Errorf("SPIFFE ID %s names a trust domain, not a workload", id)
	}
	peer := Peer{ID: id}
	for _, name := range dns {
		uid, isPod := strings.CutSuffix(name, names.PodSANSuffix)
		node, isNode := strings.CutSuffix(name, names.NodeSANSuffix)
		switch {
		case isPod && peer.PodUID == "" && dnsLabel(uid):
			peer.PodUID = uid
		case isNode && peer.Node == "" && dnsSubdomain(node):
			peer.Node = node
		default:
			return Peer{}, fmt.Errorf("DNS SAN %q is not a single well-formed pod or node binding", name)
		}
	}
	return peer, nil
}

// subjectAltNames returns the URI and DNS SANs byte for byte and refuses every
// other kind.
func subjectAltNames(cert *x509.Certificate) (uris, dns []string, err error) {
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var sequence asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &sequence)
		if err != nil || len(rest) != 0 || sequence.Class != asn1.ClassUniversal || sequence.Tag != asn1.TagSequence {
			return nil, nil, errors.New("subject alternative names are malformed")
		}
		for rest = sequence.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, nil, fmt.Errorf("subject alternative names are malformed: %w", err)
			}
			switch {
			case name.Class == asn1.ClassContextSpecific && name.Tag == tagURI && !name.IsCompound:
				uris = append(uris, string(name.Bytes))
			case name.Class == asn1.ClassContextSpecific && name.Tag == tagDNSName && !name.IsCompound:
				dns = append(dns, string(name.Bytes))
			default:
				return nil, nil, fmt.Errorf("certificate has a subject alternative name of a kind (%d) that an SVID must not have", name.Tag)
			}
		}
	}
	return uris, dns, nil
}

// dnsLabel says whether s is a lower-case DNS label (RFC 1123).
func dnsLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// dnsSubdomain says whether s is dot-separated labels, as node names are.
func dnsSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !dnsLabel(label) {
			return false
		}
	}
	return true
}
