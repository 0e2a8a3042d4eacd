package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// rootLife is how long a root lives: ten years.
const rootLife = 10 * 365 * 24 * time.Hour

// root is a CA certificate and its key.
type root struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}

// ensureRoot returns the root of the Secret. The installation makes the Secret
// without data, because the right to create Secrets can't be limited by name and
// would be the right to have a token of any service account made; here it is
// filled. Of several replicas that try at once, one does and the others read.
func ensureRoot(ctx context.Context, client kubernetes.Interface, namespace string, td spiffeid.TrustDomain, now time.Time) (r *root, created bool, err error) {
	secrets := client.CoreV1().Secrets(namespace)
	secret, err := secrets.Get(ctx, names.CASecret, metav1.GetOptions{})
	if err == nil && empty(secret) {
		filled := secret.DeepCopy()
		if filled.Data, err = newRootData(td, now); err != nil {
			return nil, false, err
		}
		// The resource version of what was read makes the first one win.
		secret, err = secrets.Update(ctx, filled, metav1.UpdateOptions{})
		created = err == nil
		if apierrors.IsConflict(err) {
			secret, err = secrets.Get(ctx, names.CASecret, metav1.GetOptions{})
		}
	}
	if apierrors.IsNotFound(err) {
		return nil, false, fmt.Errorf("CA secret %s/%s is not there: `hauberk upgrade` makes it again, empty, for a new root", namespace, names.CASecret)
	}
	if err != nil {
		return nil, false, fmt.Errorf("CA secret %s/%s: %w", namespace, names.CASecret, err)
	}
	r, err = parseRoot(secret, td, now)
	if err != nil {
		return nil, false, fmt.Errorf("CA secret %s/%s: %w; restore it, or remove its data and restart the control plane to begin with a new root",
			namespace, names.CASecret, err)
	}
	return r, created, nil
}

// empty reports a Secret as the installation makes it. One with half a root is
// not empty: it is not for us to overwrite.
func empty(secret *corev1.Secret) bool {
	return len(secret.Data[corev1.TLSCertKey]) == 0 && len(secret.Data[corev1.TLSPrivateKeyKey]) == 0
}

// newRootData makes a self-signed root.
func newRootData(td spiffeid.TrustDomain, now time.Time) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the root's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "Hauberk root " + td.Name()},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-maxBackdate),
		NotAfter:              now.Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the root: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the root's key: %w", err)
	}
	return map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}, nil
}

func labels() map[string]string {
	return map[string]string{
		"app.kubernetes.io/part-of":    "hauberk",
		"app.kubernetes.io/component":  "ca",
		"app.kubernetes.io/managed-by": names.Control,
	}
}

// parseRoot reads and validates what a Secret holds.
func parseRoot(secret *corev1.Secret, td spiffeid.TrustDomain, now time.Time) (*root, error) {
	block, rest := pem.Decode(secret.Data[corev1.TLSCertKey])
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s is no PEM certificate", corev1.TLSCertKey)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, fmt.Errorf("%s holds more than one certificate", corev1.TLSCertKey)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", corev1.TLSCertKey, err)
	}
	key, err := parseKey(secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", corev1.TLSPrivateKeyKey, err)
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(cert.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("the certificate is no CA")
	case cert.CheckSignatureFrom(cert) != nil:
		return nil, errors.New("the certificate is not self-signed")
	case len(cert.URIs) != 1 || cert.URIs[0].String() != td.ID().String():
		return nil, fmt.Errorf("the certificate is not of trust domain %s but of %v", td, cert.URIs)
	case now.Before(cert.NotBefore):
		return nil, fmt.Errorf("the certificate is not valid before %s", cert.NotBefore.Format(time.RFC3339))
	case !now.Before(cert.NotAfter):
		return nil, fmt.Errorf("the certificate expired at %s", cert.NotAfter.Format(time.RFC3339))
	}
	return &root{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})}, nil
}

// parseKey reads PKCS #8 or SEC 1. Its errors never quote the key.
func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("it is no PEM key")
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
		return nil, errors.New("the key can't sign")
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	return nil, errors.New("it is neither a PKCS #8 nor an EC private key")
}

// newSerial is a positive random number of 127 bits, more than the 64 that the
// CA/Browser Forum asks for.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
