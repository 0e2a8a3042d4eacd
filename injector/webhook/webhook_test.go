package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bundle = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

func handler(t *testing.T) *Handler {
	t.Helper()
	return &Handler{
		Config: func() (patch.Config, error) {
			return patch.Config{Image: "example.org/proxy:1", ControlAddress: "10.0.0.1:15012", TrustBundle: bundle}, nil
		},
		Namespace: func(_ context.Context, name string) (patch.NamespaceFacts, error) {
			if name == "away" {
				return patch.NamespaceFacts{}, errors.New("API server is away")
			}
			return patch.NamespaceFacts{Name: name, Labels: map[string]string{names.LabelInject: names.InjectEnabled}}, nil
		},
		Metrics: NewMetrics(prometheus.NewRegistry()),
		Log:     slog.New(slog.DiscardHandler),
	}
}

// start serves over TLS on loopback and returns a client and the address.
func start(t *testing.T, h *Handler) (*http.Client, string) {
	t.Helper()
	cert := selfSigned(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, h, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil })
	}()
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}, l.Addr().String()
}

func selfSigned(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func review(namespace, resource, sub, operation, pod string) string {
	return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","namespace":"` + namespace +
		`","operation":"` + operation + `","resource":{"group":"","version":"v1","resource":"` + resource + `"},"subResource":"` + sub + `","object":` + pod + `}}`
}

func TestReviews(t *testing.T) {
	const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"a-"},"spec":{"containers":[{"name":"app"}]}}`
	for _, tc := range []struct {
		name, body    string
		allowed, edit bool
		message       string
		warnings      int
		result        string
	}{
		{"plain", review("bank", "pods", "", "CREATE", pod), true, true, "", 0, resultInjected},
		{"mesh itself", review(names.Namespace, "pods", "", "CREATE", pod), true, false, "", 0, resultSkipped},
		{"host network", review("bank", "pods", "", "CREATE", `{"spec":{"hostNetwork":true}}`), true, false, "", 1, resultSkipped},
		{"reserved user", review("bank", "pods", "", "CREATE", `{"spec":{"securityContext":{"runAsUser":15015}}}`), false, false, "spec.securityContext.runAsUser", 0, resultRefused},
		{"not a pod", review("bank", "pods", "", "CREATE", `{"spec":[]}`), false, false, "decode pod", 0, resultRefused},
		{"another resource", review("bank", "services", "", "CREATE", pod), true, false, "", 0, resultSkipped},
		{"subresource", review("bank", "pods", "eviction", "CREATE", pod), true, false, "", 0, resultSkipped},
		{"update", review("bank", "pods", "", "UPDATE", pod), true, false, "", 0, resultSkipped},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := handler(t)
			client, address := start(t, h)
			res, err := client.Post("https://"+address+Path, "application/json", strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var got admissionv1.AdmissionReview
			if err := json.NewDecoder(res.Body).Decode(&got); err != nil || got.Response == nil {
				t.Fatalf("status %s, %v", res.Status, err)
			}
			r := got.Response
			if r.UID != "u1" || got.Kind != "AdmissionReview" || r.Allowed != tc.allowed || (r.Patch != nil) != tc.edit || len(r.Warnings) != tc.warnings {
				t.Errorf("response %+v", r)
			}
			if tc.edit && (*r.PatchType != admissionv1.PatchTypeJSONPatch || !bytes.Contains(r.Patch, []byte(names.ProxyContainer))) {
				t.Errorf("patch %s", r.Patch)
			}
			if !tc.allowed && !strings.Contains(r.Result.Message, tc.message) {
				t.Errorf("message %q does not say %q", r.Result.Message, tc.message)
			}
			if n := testutil.ToFloat64(h.Metrics.reviews.WithLabelValues(tc.result)); n != 1 {
				t.Errorf("counted %v reviews as %s", n, tc.result)
			}
		})
	}
}

// TestGarbage: nothing that arrives gets a review or ends the server.
func TestGarbage(t *testing.T) {
	h := handler(t)
	client, address := start(t, h)
	good := review("bank", "pods", "", "CREATE", `{"spec":{}}`)
	for _, tc := range []struct {
		name, method, kind, body string
		want                     int
	}{
		{"GET", http.MethodGet, "application/json", "", http.StatusMethodNotAllowed},
		{"type", http.MethodPost, "text/plain", good, http.StatusUnsupportedMediaType},
		{"empty", http.MethodPost, "application/json", "", http.StatusBadRequest},
		{"text", http.MethodPost, "application/json", "hello", http.StatusBadRequest},
		{"null", http.MethodPost, "application/json", "null", http.StatusBadRequest},
		{"no request", http.MethodPost, "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, http.StatusBadRequest},
		{"old version", http.MethodPost, "application/json", strings.Replace(good, "k8s.io/v1", "k8s.io/v1beta1", 1), http.StatusBadRequest},
		{"deep", http.MethodPost, "application/json", strings.Repeat("[", 1<<20), http.StatusBadRequest},
		{"huge", http.MethodPost, "application/json", `{"kind":"` + strings.Repeat("x", maxBody) + `"}`, http.StatusRequestEntityTooLarge},
		{"API server away", http.MethodPost, "application/json", review("away", "pods", "", "CREATE", `{"spec":{}}`), http.StatusServiceUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, "https://"+address+Path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", tc.kind)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != tc.want {
				body, _ := io.ReadAll(res.Body)
				t.Errorf("status %s (%s), want %d", res.Status, body, tc.want)
			}
		})
	}
	// Bytes that are no TLS at all, and a connection that says nothing.
	for _, noise := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff", ""} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(noise)); err != nil {
			t.Error(err)
		}
		defer c.Close()
	}
	res, err := client.Post("https://"+address+Path, "application/json", strings.NewReader(good))
	if err != nil {
		t.Fatalf("after the garbage: %v", err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("after the garbage: %s", res.Status)
	}
}

func TestPanicIsAnError(t *testing.T) {
	h := handler(t)
	h.Config = func() (patch.Config, error) { panic("odd") }
	client, address := start(t, h)
	for range 2 {
		res, err := client.Post("https://"+address+Path, "application/json", strings.NewReader(review("bank", "pods", "", "CREATE", `{"spec":{}}`)))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusInternalServerError {
			t.Errorf("status %s", res.Status)
		}
	}
	if n := testutil.ToFloat64(h.Metrics.reviews.WithLabelValues(resultError)); n != 2 {
		t.Errorf("counted %v errors", n)
	}
}
