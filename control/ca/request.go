package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
)

const (
	maxRequest = 16 << 10 // bytes of a CSR
	minRSA     = 2048     // bits
	maxRSA     = 8192     // bits; more is work for whoever verifies
)

// requestKey returns the public key of a certificate request, DER, whose
// signature proves that the caller holds the private one. Whatever else the
// request asks for (names, extensions) is ignored.
func requestKey(der []byte) (crypto.PublicKey, error) {
	if len(der) == 0 {
		return nil, errors.New("certificate request is empty")
	}
	if len(der) > maxRequest {
		return nil, fmt.Errorf("certificate request has %d bytes; at most %d are read", len(der), maxRequest)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("certificate request is not a well-formed PKCS #10 request in DER")
	}
	// The key first: it bounds the work of the signature.
	if err := checkKey(request.PublicKey); err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, errors.New("certificate request is not signed by its own key")
	}
	return request.PublicKey, nil
}

// checkKey allows ECDSA P-256 and P-384, Ed25519, and RSA from 2048 bits.
func checkKey(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
		return errors.New("ECDSA key is of another curve than P-256 and P-384")
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return nil
		}
		return errors.New("Ed25519 key is malformed")
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSA || bits > maxRSA {
			return fmt.Errorf("RSA key has %d bits; %d to %d are allowed", bits, minRSA, maxRSA)
		}
		return nil
	}
	return errors.New("key is neither ECDSA P-256 or P-384, nor Ed25519, nor RSA")
}
