package certs

import (
	"crypto/x509"
	"testing"
	"time"
)

// TestRenewOverYears walks through three years in steps of six hours. At every moment the
// certificate that is served must verify against what had been published a day
// before, or the API server would meet an authority that it does not know yet.
func TestRenewOverYears(t *testing.T) {
	names := []string{"hauberk-injector.hauberk-system.svc"}
	begin := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	var m material
	var published []*x509.CertPool // one a step
	leaves, authorities := map[string]bool{}, map[string]bool{}
	for step := range 3 * 365 * 4 {
		now := begin.Add(time.Duration(step) * 6 * time.Hour)
		var err error
		if m, _, err = renew(m, names, now); err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(m.bundle()) {
			t.Fatal("the bundle holds no certificate")
		}
		published = append(published, pool)
		known := published[max(0, step-4)]
		if _, err := m.leaf.cert.Verify(x509.VerifyOptions{Roots: known, CurrentTime: now, DNSName: names[0]}); err != nil {
			t.Fatalf("%s: what is served does not verify against what was published a day before: %v", now, err)
		}
		if rest := m.leaf.cert.NotAfter.Sub(now); rest < leafLife/3-6*time.Hour {
			t.Fatalf("%s: the certificate ends in %s", now, rest)
		}
		leaves[string(m.leaf.cert.Raw)] = true
		authorities[string(m.ca.cert.Raw)] = true

		if step%20 == 0 { // what is stored is what is read
			data, err := m.encode()
			if err != nil {
				t.Fatal(err)
			}
			if m, err = decode(data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(leaves) < 50 || len(authorities) < 4 {
		t.Errorf("%d certificates of %d authorities in three years: nothing is rotated", len(leaves), len(authorities))
	}
}

func TestRenewAfterLongSleep(t *testing.T) {
	names := []string{"x"}
	begin := time.Now()
	m, changed, err := renew(material{}, names, begin)
	if err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if _, again, err := renew(m, names, begin); err != nil || again {
		t.Errorf("a second call changes: %v, %v", again, err)
	}
	later := begin.Add(2 * caLife)
	if m, _, err = renew(m, names, later); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(m.bundle())
	if _, err := m.leaf.cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: later}); err != nil {
		t.Errorf("after two years of absence: %v", err)
	}
	if m2, changed, err := renew(m, []string{"y"}, later); err != nil || !changed || m2.leaf.cert.DNSNames[0] != "y" {
		t.Errorf("another name: changed %v, %v", changed, err)
	}
}

func TestDecodeRejects(t *testing.T) {
	m, _, err := renew(material{}, []string{"x"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := renew(material{}, []string{"x"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(map[string][]byte, map[string][]byte){
		"no key":         func(d, _ map[string][]byte) { delete(d, keyLeafKey) },
		"garbage":        func(d, _ map[string][]byte) { d[keyCA] = []byte("garbage") },
		"another's key":  func(d, o map[string][]byte) { d[keyLeafKey] = o[keyLeafKey] },
		"leaf as CA":     func(d, _ map[string][]byte) { d[keyCA], d[keyCAKey] = d[keyLeaf], d[keyLeafKey] },
		"half a Secret":  func(d, _ map[string][]byte) { delete(d, keyCA) },
		"key of the CA?": func(d, o map[string][]byte) { d[keyCAKey] = o[keyCAKey] },
	} {
		data, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		others, err := other.encode()
		if err != nil {
			t.Fatal(err)
		}
		f(data, others)
		if _, err := decode(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if m, err := decode(nil); err != nil || m.ca.cert != nil {
		t.Errorf("an empty Secret: %v, %v", m, err)
	}
}
