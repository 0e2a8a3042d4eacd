// Package certs makes the webhook's serving certificates and keeps the API
// server's copy of their roots right.
//
// It owns the Secret hauberk-injector-webhook, which all replicas share, and
// the caBundle fields of the MutatingWebhookConfiguration. These certificates
// have nothing to do with the mesh's CA: the injector must start before the
// control plane does, and a webhook's roots are nobody's identity.
//
// A certificate authority is replaced in three steps, so that neither the API
// server nor another replica ever meets a certificate it cannot verify: the
// next authority is made and published in the caBundle; a day later it signs;
// the previous one stays published until it ends.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Keys of the Secret.
const (
	keyCA       = "ca.crt"
	keyCAKey    = "ca.key"
	keyNext     = "next-ca.crt"
	keyNextKey  = "next-ca.key"
	keyPrevious = "previous-ca.crt"
	keyLeaf     = "tls.crt"
	keyLeafKey  = "tls.key"
)

const (
	caLife   = 365 * 24 * time.Hour
	leafLife = 30 * 24 * time.Hour
	// publishFor is how long an authority is published before it signs.
	publishFor = 24 * time.Hour
	// skew is how far clocks may differ.
	skew = 5 * time.Minute
)

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// material is what the Secret holds. Only ca and leaf are always there.
type material struct {
	ca, leaf pair
	next     *pair
	previous *x509.Certificate
}

// renew returns the material as it should be at a time, and whether that
// differs. It is safe to call with the empty material.
func renew(m material, dnsNames []string, now time.Time) (material, bool, error) {
	changed := false
	if m.ca.cert == nil || now.After(m.ca.cert.NotAfter.Add(-leafLife/3)) && m.next == nil {
		// None, or one that ends before another could be published: nothing
		// to overlap with. The caBundle is patched as soon as this is stored.
		ca, err := newCA(now)
		if err != nil {
			return m, false, err
		}
		m = material{ca: ca}
		changed = true
	}
	if m.next == nil && due(m.ca.cert, now) {
		next, err := newCA(now)
		if err != nil {
			return m, false, err
		}
		m.next, changed = &next, true
	}
	if m.next != nil && now.After(m.next.cert.NotBefore.Add(skew+publishFor)) {
		m.previous, m.ca, m.next = m.ca.cert, *m.next, nil
		changed = true
	}
	if m.previous != nil && now.After(m.previous.NotAfter) {
		m.previous, changed = nil, true
	}
	if !m.leafServes(dnsNames, now) {
		leaf, err := newLeaf(m.ca, dnsNames, now)
		if err != nil {
			return m, false, err
		}
		m.leaf, changed = leaf, true
	}
	return m, changed, nil
}

// leafServes tells whether the leaf is of the current authority, for the names,
// and in the first two thirds of its life.
func (m material) leafServes(dnsNames []string, now time.Time) bool {
	return m.leaf.cert != nil && !due(m.leaf.cert, now) &&
		m.leaf.cert.CheckSignatureFrom(m.ca.cert) == nil && slices.Equal(m.leaf.cert.DNSNames, dnsNames)
}

// due tells whether two thirds of a certificate's life are over, or none of it
// has begun.
func due(cert *x509.Certificate, now time.Time) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return now.Before(cert.NotBefore) || now.After(cert.NotBefore.Add(life/3*2))
}

// bundle is the caBundle: all authorities, in an order that every replica
// agrees on.
func (m material) bundle() []byte {
	var out bytes.Buffer
	out.Write(encodeCert(m.ca.cert))
	if m.next != nil {
		out.Write(encodeCert(m.next.cert))
	}
	if m.previous != nil {
		out.Write(encodeCert(m.previous))
	}
	return out.Bytes()
}

// certificate is the leaf as crypto/tls wants it.
func (m material) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{m.leaf.cert.Raw}, PrivateKey: m.leaf.key, Leaf: m.leaf.cert}
}

func (m material) encode() (map[string][]byte, error) {
	out := map[string][]byte{keyCA: encodeCert(m.ca.cert), keyLeaf: encodeCert(m.leaf.cert)}
	keys := map[string]*ecdsa.PrivateKey{keyCAKey: m.ca.key, keyLeafKey: m.leaf.key}
	if m.next != nil {
		out[keyNext], keys[keyNextKey] = encodeCert(m.next.cert), m.next.key
	}
	if m.previous != nil {
		out[keyPrevious] = encodeCert(m.previous)
	}
	for name, key := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", name, err)
		}
		out[name] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	return out, nil
}

// decode reads a Secret's data. Damage to ca or leaf is an error; without data
// the material is empty. What is optional and damaged is left out.
func decode(data map[string][]byte) (material, error) {
	var m material
	if len(data) == 0 {
		return m, nil
	}
	var err error
	if m.ca, err = decodePair(data, keyCA, keyCAKey); err != nil {
		return material{}, err
	}
	if !m.ca.cert.IsCA {
		return material{}, fmt.Errorf("%s is not a certificate authority", keyCA)
	}
	if m.leaf, err = decodePair(data, keyLeaf, keyLeafKey); err != nil {
		return material{}, err
	}
	if next, err := decodePair(data, keyNext, keyNextKey); err == nil && next.cert.IsCA {
		m.next = &next
	}
	if previous, err := decodeCert(data[keyPrevious]); err == nil {
		m.previous = previous
	}
	return m, nil
}

func decodePair(data map[string][]byte, certName, keyName string) (pair, error) {
	cert, err := decodeCert(data[certName])
	if err != nil {
		return pair{}, fmt.Errorf("%s: %w", certName, err)
	}
	block, _ := pem.Decode(data[keyName])
	if block == nil {
		return pair{}, fmt.Errorf("%s: not PEM", keyName)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return pair{}, fmt.Errorf("%s: %w", keyName, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return pair{}, fmt.Errorf("%s does not belong to %s", keyName, certName)
	}
	return pair{cert, key}, nil
}

func decodeCert(in []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(in)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func encodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func newCA(now time.Time) (pair, error) {
	template := &x509.Certificate{
		NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		Subject: pkix.Name{CommonName: "hauberk-injector webhook"},
	}
	return issue(template, nil)
}

func newLeaf(ca pair, dnsNames []string, now time.Time) (pair, error) {
	template := &x509.Certificate{
		NotBefore: now.Add(-skew), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: dnsNames,
	}
	return issue(template, &ca)
}

// issue signs a template with a new P-256 key, by itself if ca is nil.
func issue(template *x509.Certificate, ca *pair) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, fmt.Errorf("generate key: %w", err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return pair{}, fmt.Errorf("choose serial number: %w", err)
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
		if template.NotAfter.After(parent.NotAfter) {
			template.NotAfter = parent.NotAfter
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return pair{}, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return pair{}, fmt.Errorf("read back certificate: %w", err)
	}
	return pair{cert, key}, nil
}
