package h2spec

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
)

const podUID = "22222222-2222-2222-2222-222222222222"

// TestH2spec wants all cases to pass, in strict mode.
func TestH2spec(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "hauberk-proxy")
	build := exec.Command("go", "build", "-o", binary, "./cmd/hauberk-proxy")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build hauberk-proxy: %v\n%s", err, out)
	}
	app := application(t)
	inbound, outbound := free(t), free(t)
	identity(t, dir)
	file := filepath.Join(dir, "proxy.yaml")
	write(t, file, fmt.Sprintf(`podUID: %[1]s
identity: {certificateFile: %[2]s/cert.pem, keyFile: %[2]s/key.pem, bundleFile: %[2]s/ca.pem}
logLevel: warn
listeners:
  inbound:
    - {address: "%[3]s", destination: "%[5]s"}
  outbound:
    - {address: "%[4]s", destination: "10.96.0.1:80"}
resources:
  - name: mesh
    version: "1"
    mesh: {trustDomain: cluster.local}
  - name: uid/%[1]s
    version: "1"
    workload:
      {uid: %[1]s, namespace: bank, name: server-0, serviceAccount: server, meshed: true, policySet: server-policy,
       spiffeId: spiffe://cluster.local/ns/bank/sa/server, addresses: ["127.0.0.1"],
       portProtocols: {"%[6]s": APP_PROTOCOL_HTTP2}}
  - name: server-policy
    version: "1"
    policySet: {id: server-policy, defaultAction: ACTION_ALLOW}
  - name: 10.96.0.1:80
    version: "1"
    destination:
      {kind: Service, namespace: bank, name: app, port: 80, protocol: APP_PROTOCOL_HTTP2,
       endpoints: [{address: 127.0.0.1, port: %[6]s, ready: true, workloadName: app, namespace: bank}]}
`, podUID, dir, inbound, outbound, app, app[strings.LastIndexByte(app, ':')+1:]))

	proxy := exec.Command(binary, "--config", file)
	proxy.Stdout, proxy.Stderr = os.Stderr, os.Stderr
	proxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Process.Kill(); _ = proxy.Wait() })

	for name, address := range map[string]string{"inbound": inbound, "outbound": outbound} {
		t.Run(name, func(t *testing.T) {
			await(t, address)
			_, port, _ := net.SplitHostPort(address)
			n, _ := strconv.Atoi(port)
			ok, err := h2spec.Run(&config.Config{Host: "127.0.0.1", Port: n, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000,
				Strict: true, JUnitReport: filepath.Join(dir, name+".xml")})
			if err != nil || !ok {
				t.Errorf("h2spec: %v, %v; see above", ok, err)
			}
			// Nothing may have been left out.
			report, err := os.ReadFile(filepath.Join(dir, name+".xml"))
			if err != nil {
				t.Fatal(err)
			}
			if cases := strings.Count(string(report), "<testcase"); cases < 140 || strings.Contains(string(report), "<skipped>") {
				t.Errorf("%d cases, and some may have been skipped", cases)
			}
		})
	}
}

// application is a server that speaks HTTP/2 by prior knowledge.
func application(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// An answer before the request has ended would end streams whose faults
			// are still to come.
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, strings.Repeat("hauberk\n", 1024))
		})}
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func await(t *testing.T, address string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("%s: nobody listens after 20 s", address)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// identity writes a certificate that the sidecar may start with.
func identity(t *testing.T, dir string) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	td, _ := url.Parse("spiffe://cluster.local")
	id, _ := url.Parse("spiffe://cluster.local/ns/bank/sa/server")
	rootKey, leafKey := key(), key()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{td}}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{id},
		DNSNames: []string{podUID + ".pod.hauberk.internal"}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, &leafKey.PublicKey, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"ca.pem": {Type: "CERTIFICATE", Bytes: rootDER}, "cert.pem": {Type: "CERTIFICATE", Bytes: leafDER},
		"key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		write(t, filepath.Join(dir, name), string(pem.EncodeToMemory(block)))
	}
}
