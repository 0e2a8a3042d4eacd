package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/identity"
)

const (
	clientUID = "11111111-1111-1111-1111-111111111111"
	serverUID = "22222222-2222-2222-2222-222222222222"
	clientID  = "spiffe://cluster.local/ns/bench/sa/client"
	serverID  = "spiffe://cluster.local/ns/bench/sa/server"
	// clientName and serverName are what peers that do not read SPIFFE IDs verify.
	clientName = "client.bench"
	serverName = "server.bench"
)

// makePKI writes ca.pem and, for each of client and server, two leaves of the
// same root: name.crt and name.key with a DNS name (name.pem has both), and
// name-svid.crt and name-svid.key as Hauberk's CA signs them. All keys are
// P-256.
func makePKI(dir string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	td := &url.URL{Scheme: "spiffe", Host: "cluster.local"}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench root"}, URIs: []*url.URL{td},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return fmt.Errorf("sign root: %w", err)
	}
	write := func(name string, blocks ...*pem.Block) error {
		var b []byte
		for _, block := range blocks {
			b = append(b, pem.EncodeToMemory(block)...)
		}
		return os.WriteFile(filepath.Join(dir, name), b, 0o644) //nolint:gosec // the sidecar in its namespace runs as another user; the keys are for this run only
	}
	if err := write("ca.pem", &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		return err
	}
	serial := int64(1)
	leaf := func(name string, change func(*x509.Certificate) error) error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		serial++
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{Organization: []string{"Hauberk"}},
			NotBefore: now.Add(-time.Minute), NotAfter: now.Add(12 * time.Hour), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
		if err := change(c); err != nil {
			return err
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
		if err != nil {
			return fmt.Errorf("sign %s: %w", name, err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		cb, kb := &pem.Block{Type: "CERTIFICATE", Bytes: der}, &pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}
		for file, blocks := range map[string][]*pem.Block{name + ".crt": {cb}, name + ".key": {kb}, name + ".pem": {cb, kb}} {
			if err := write(file, blocks...); err != nil {
				return err
			}
		}
		return nil
	}
	for _, p := range []struct{ name, dns, id, uid string }{
		{"client", clientName, clientID, clientUID}, {"server", serverName, serverID, serverUID},
	} {
		if err := leaf(p.name, func(c *x509.Certificate) error { c.DNSNames = []string{p.dns}; return nil }); err != nil {
			return err
		}
		if err := leaf(p.name+"-svid", func(c *x509.Certificate) error {
			id, err := url.Parse(p.id)
			if err != nil {
				return err
			}
			san, err := identity.PodSAN(p.uid)
			c.URIs, c.DNSNames = []*url.URL{id}, []string{san}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
