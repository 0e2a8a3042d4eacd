// Package pki owns the cluster's keys and certificates: it makes them and
// writes them where the components look for them. It knows nothing of how the
// components are run.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/render"
)

// lifetime of everything issued; a cluster is rebuilt long before.
const lifetime = 365 * 24 * time.Hour

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// leaf is a certificate to issue.
type leaf struct {
	name   string // of the files
	cn     string
	groups []string
	hosts  []string
	addrs  []netip.Addr
}

// Write makes all keys and certificates of the cluster under plan.PKIDir and
// the kubeconfigs under plan.ConfigDir, replacing what is there.
func Write(c plan.Cluster, now time.Time) error {
	if err := os.MkdirAll(plan.PKIDir(), 0o700); err != nil {
		return err
	}
	ca, err := newAuthority("hauberk-test-ca", now)
	if err != nil {
		return err
	}
	front, err := newAuthority("hauberk-test-front-proxy-ca", now)
	if err != nil {
		return err
	}
	if err := ca.save("ca"); err != nil {
		return err
	}
	if err := front.save("front-proxy-ca"); err != nil {
		return err
	}
	if err := writeServiceAccountKey(); err != nil {
		return err
	}
	if _, _, err := front.issue(leaf{name: "front-proxy", cn: "front-proxy-client"}, now); err != nil {
		return err
	}
	for _, l := range leaves(c) {
		if _, _, err := ca.issue(l, now); err != nil {
			return err
		}
	}
	return writeKubeconfigs(c, ca, now)
}

func leaves(c plan.Cluster) []leaf {
	v4, v6 := c.API()
	local := netip.MustParseAddr("127.0.0.1")
	control := []netip.Addr{v4, v6, local}
	ls := []leaf{
		{name: "kube-apiserver", cn: "kube-apiserver", addrs: append(c.ServiceAddress(), control...), hosts: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}},
		{name: "kube-controller-manager", cn: "kube-controller-manager", addrs: control, hosts: []string{"localhost"}},
		{name: "kube-scheduler", cn: "kube-scheduler", addrs: control, hosts: []string{"localhost"}},
		{name: "etcd", cn: "etcd", addrs: control, hosts: []string{"localhost"}},
		{name: "etcd-client", cn: "kube-apiserver-etcd-client"},
		{name: "kubelet-client", cn: "kube-apiserver-kubelet-client"},
	}
	for _, n := range c.Workers() {
		ls = append(ls, leaf{name: "kubelet-" + n.Name, cn: "system:node:" + n.Name,
			groups: []string{"system:nodes"}, hosts: []string{n.Name}, addrs: c.Addresses(n)})
	}
	return ls
}

func writeKubeconfigs(c plan.Cluster, ca *authority, now time.Time) error {
	write := func(space, component string, l leaf) error {
		cert, key, err := ca.issue(l, now)
		if err != nil {
			return err
		}
		text := render.Kubeconfig(c.Server(), l.cn, ca.pem, cert, key)
		path := render.KubeconfigPath(space, component)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(text), 0o600)
	}
	at := plan.ControlPlane
	if err := write(at, "admin", leaf{name: "admin", cn: "kubernetes-admin", groups: []string{"system:masters"}}); err != nil {
		return err
	}
	for _, component := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := write(at, component, leaf{cn: "system:" + component}); err != nil {
			return err
		}
	}
	for _, n := range c.Workers() {
		if err := write(n.Name, "kubelet", leaf{cn: "system:node:" + n.Name, groups: []string{"system:nodes"}}); err != nil {
			return err
		}
		if err := write(n.Name, "kube-proxy", leaf{cn: "system:kube-proxy"}); err != nil {
			return err
		}
	}
	return nil
}

func newAuthority(name string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of %s: %w", name, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-5 * time.Minute),
		NotAfter:              now.Add(lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("self-sign %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	return &authority{cert: cert, key: key, pem: block("CERTIFICATE", der)}, nil
}

func (a *authority) save(name string) error {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return err
	}
	return writePair(name, a.pem, block("PRIVATE KEY", key))
}

// issue signs the leaf and, if it has a name, writes it. Every certificate may
// serve and be a client: etcd's peers are both.
func (a *authority) issue(l leaf, now time.Time) (cert, key []byte, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key of %s: %w", l.cn, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: l.cn, Organization: l.groups},
		NotBefore:    now.Add(-5 * time.Minute),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:     l.hosts,
	}
	for _, addr := range l.addrs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, priv.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign %s: %w", l.cn, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, err
	}
	cert, key = block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
	if l.name != "" {
		err = writePair(l.name, cert, key)
	}
	return cert, key, err
}

func writeServiceAccountKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate service account key: %w", err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(plan.PKIDir(), "service-account.key"), block("PRIVATE KEY", priv), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(plan.PKIDir(), "service-account.pub"), block("PUBLIC KEY", pub), 0o644)
}

func writePair(name string, cert, key []byte) error {
	if err := os.WriteFile(filepath.Join(plan.PKIDir(), name+".crt"), cert, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(plan.PKIDir(), name+".key"), key, 0o600)
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n, nil
}
