package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrNoPeer says that a connection's other end presented no certificate.
var ErrNoPeer = errors.New("peer presented no certificate")

// sessionsPerTarget is how many sessions a client keeps for each expectation.
const sessionsPerTarget = 8

// ServerOption changes what ServerTLS returns.
type ServerOption func(*serverOptions)

type serverOptions struct {
	alpn     []string
	optional bool
}

// WithALPN sets the application protocols of the server, in its order of
// preference.
func WithALPN(protocols ...string) ServerOption {
	return func(o *serverOptions) { o.alpn = append(o.alpn, protocols...) }
}

// WithOptionalClient lets clients without a certificate in; one that is
// presented is still verified. The handler must tell them apart by PeerOf. It
// is for the CA, whose callers have no SVID yet.
func WithOptionalClient() ServerOption {
	return func(o *serverOptions) { o.optional = true }
}

// ServerTLS returns the configuration of a server that proves src's identity and
// requires its clients to prove one of the same trust domain. Clients are
// verified in VerifyConnection, which also runs on resumption: a session whose
// root was removed, or whose certificate expired, is not resumed. Only because
// of that it issues session tickets.
func ServerTLS(src *Source, opts ...ServerOption) *tls.Config {
	var o serverOptions
	for _, opt := range opts {
		opt(&o)
	}
	auth := tls.RequireAnyClientCert
	if o.optional {
		auth = tls.RequestClientCert
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: o.alpn,
		// The chain is verified below, on resumption too.
		ClientAuth: auth,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			snap, err := src.valid()
			if err != nil {
				return nil, err
			}
			return snap.cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			// An expired SVID serves nobody, resumed sessions included.
			if _, err := src.valid(); err != nil {
				return err
			}
			if len(state.PeerCertificates) == 0 && o.optional {
				return nil
			}
			if _, err := src.VerifyPeer(state.PeerCertificates, x509.ExtKeyUsageClientAuth); err != nil {
				return fmt.Errorf("verify client: %w", err)
			}
			return nil
		},
	}
}

// Expect is whom a client wants to reach. The zero Expect matches nobody.
type Expect struct {
	ID spiffeid.ID
	// PodUID is the pod that the certificate must be bound to; empty for any.
	PodUID string
}

// Check returns an error unless peer is who is expected.
func (e Expect) Check(peer Peer) error {
	switch {
	case e.ID.IsZero():
		return errors.New("no identity is expected of the server")
	case peer.ID != e.ID:
		return fmt.Errorf("server is %s, want %s", peer.ID, e.ID)
	case e.PodUID != "" && peer.PodUID != e.PodUID:
		return fmt.Errorf("server %s is pod %q, want pod %q", peer.ID, peer.PodUID, e.PodUID)
	}
	return nil
}

// ClientTLS returns the configuration of a client that proves src's identity and
// accepts only the server that is expected. It keeps a few sessions, so callers
// reuse it for the same expectation; a resumed session is verified again.
func ClientTLS(src *Source, expect Expect, alpn ...string) *tls.Config {
	config := anonymousClientTLS(src, expect, alpn...)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		snap, err := src.valid()
		if err != nil {
			return nil, err
		}
		return snap.cert, nil
	}
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		// GetClientCertificate is not asked on resumption.
		if _, err := src.valid(); err != nil {
			return err
		}
		return verify(state)
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(sessionsPerTarget)
	return config
}

// anonymousClientTLS is ClientTLS without a certificate of the client's own, for
// asking the CA for the first one or for the one after an expired one.
func anonymousClientTLS(src *Source, expect Expect, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: alpn,
		// SVIDs carry no host name. VerifyConnection replaces, and is stricter
		// than, the verification that this leaves out.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			peer, err := src.VerifyPeer(state.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return fmt.Errorf("verify server: %w", err)
			}
			return expect.Check(peer)
		},
	}
}

// PeerOf returns whom the certificate of a connection names. It is meant for
// connections of ServerTLS and ClientTLS, which verified it; the error is
// ErrNoPeer when there is no certificate.
func PeerOf(state tls.ConnectionState) (Peer, error) {
	if !state.HandshakeComplete {
		return Peer{}, errors.New("TLS handshake is not complete")
	}
	if len(state.PeerCertificates) == 0 {
		return Peer{}, ErrNoPeer
	}
	return PeerFromCertificate(state.PeerCertificates[0])
}
