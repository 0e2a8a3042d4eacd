package pki

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

func TestLeavesVerifyForTheirAddresses(t *testing.T) {
	now := time.Now()
	ca, err := newAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	c := plan.Cluster{Nodes: 2, Underlay: plan.Candidates()[0], DualStack: true}
	for _, l := range leaves(c) {
		l.name = "" // not written
		text, _, err := ca.issue(l, now)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("%s: %v", l.cn, err)
			}
		}
		for _, addr := range l.addrs {
			if err := cert.VerifyHostname(addr.String()); err != nil {
				t.Errorf("%s at %s: %v", l.cn, addr, err)
			}
		}
		for _, host := range l.hosts {
			if err := cert.VerifyHostname(host); err != nil {
				t.Errorf("%s as %s: %v", l.cn, host, err)
			}
		}
		if err := cert.VerifyHostname("elsewhere.example"); err == nil {
			t.Errorf("%s passes for any name", l.cn)
		}
	}
}
