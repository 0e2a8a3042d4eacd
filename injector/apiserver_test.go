package injector

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// testProxyImage is what the chart is rendered with.
const testProxyImage = "registry.example.org:5000/hauberk/proxy:v1"

// binaries finds a real API server and etcd, or skips the test.
func binaries(t *testing.T) (apiserver, etcd string) {
	t.Helper()
	apiserver = os.Getenv("HAUBERK_KUBE_APISERVER")
	if apiserver == "" {
		if cache, err := os.UserCacheDir(); err == nil {
			found, _ := filepath.Glob(filepath.Join(cache, "hauberk", "cluster", "kubernetes-*", "kube-apiserver"))
			if len(found) > 0 {
				apiserver = found[len(found)-1]
			}
		}
	}
	etcd, err := exec.LookPath("etcd")
	if apiserver == "" || err != nil {
		t.Skip("left out: no kube-apiserver and etcd here; `make cluster` gets both, HAUBERK_KUBE_APISERVER names one")
	}
	return apiserver, etcd
}

// startAPIServer runs etcd and kube-apiserver on loopback for one test and
// returns a cluster administrator's configuration. There are no controllers.
func startAPIServer(t *testing.T) *rest.Config {
	t.Helper()
	apiserver, etcd := binaries(t)
	dir := t.TempDir()
	ports := freePorts(t, 3)
	etcdURL := "http://127.0.0.1:" + ports[0]
	peerURL := "http://127.0.0.1:" + ports[1]
	spawn(t, dir, "etcd", etcd, "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL, "--initial-cluster", "default="+peerURL)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile, tokens := filepath.Join(dir, "sa.key"), filepath.Join(dir, "tokens.csv")
	const token = "administrator-of-one-test"
	for name, content := range map[string][]byte{
		keyFile: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		tokens:  []byte(token + ",admin,admin,system:masters\n"),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	spawn(t, dir, "kube-apiserver", apiserver, "--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--secure-port="+ports[2],
		"--advertise-address="+outsideAddress(t), "--cert-dir="+filepath.Join(dir, "certs"), "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+keyFile, "--service-account-signing-key-file="+keyFile,
		"--token-auth-file="+tokens, "--authorization-mode=RBAC",
		// No controllers: nobody routes to Services, so webhooks are reached at
		// their endpoints.
		"--enable-aggregator-routing=true")

	cfg := &rest.Config{Host: "https://127.0.0.1:" + ports[2], BearerToken: token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	client := kubernetes.NewForConfigOrDie(cfg)
	eventually(t, time.Minute, "API server ready", func() error {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
		return err
	})
	return cfg
}

// spawn runs a program until the end of the test and shows the end of its log
// if the test fails.
func spawn(t *testing.T, dir, name, program string, args ...string) {
	t.Helper()
	log := filepath.Join(dir, name+".log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out.Close()
		if t.Failed() {
			if content, err := os.ReadFile(log); err == nil {
				t.Logf("end of %s's log:\n%s", name, content[max(0, len(content)-3000):])
			}
		}
	})
}

func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return out
}

// outsideAddress is one that may stand in an EndpointSlice, which loopback may
// not.
func outsideAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("left out: the machine has no IPv4 address but loopback, and an API server calls no webhook there")
	return ""
}

func eventually(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// installChart renders the injector's part of the chart, and what the control plane
// may do, with helm's engine and creates every object in it, with strict validation of fields.
func installChart(t *testing.T, cfg *rest.Config) {
	t.Helper()
	chart, err := loader.LoadDir("../install/charts/hauberk")
	if err != nil {
		t.Fatal(err)
	}
	values, err := util.ToRenderValues(chart, map[string]any{"images": map[string]any{"proxy": testProxyImage}},
		common.ReleaseOptions{Name: "hauberk", Namespace: "hauberk-system", IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(chart, values)
	if err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(cfg)
	groups, err := restmapper.GetAPIGroupResources(client.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper, objects := restmapper.NewDiscoveryRESTMapper(groups), dynamic.NewForConfigOrDie(cfg)
	created := map[string]int{}
	for name, content := range files {
		if base := filepath.Base(name); !strings.HasPrefix(base, "injector") && base != "control-rbac.yaml" {
			continue
		}
		docs := utilyaml.NewYAMLReader(bufioReader(content))
		for {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			var o unstructured.Unstructured
			if err := yaml.Unmarshal(doc, &o.Object); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, doc)
			}
			if len(o.Object) == 0 {
				continue
			}
			gvk := o.GroupVersionKind()
			mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
			if err != nil {
				t.Fatal(err)
			}
			var target dynamic.ResourceInterface = objects.Resource(mapping.Resource)
			if mapping.Scope.Name() == "namespace" {
				target = objects.Resource(mapping.Resource).Namespace(o.GetNamespace())
			}
			if _, err := target.Create(t.Context(), &o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
				t.Fatalf("create %s %s of %s: %v", gvk.Kind, o.GetName(), name, err)
			}
			created[gvk.Kind]++
		}
	}
	for _, kind := range []string{"Deployment", "Service", "PodDisruptionBudget", "Secret", "ServiceAccount", "Role", "ClusterRole",
		"MutatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"} {
		if created[kind] == 0 {
			t.Errorf("the chart makes no %s for the injector", kind)
		}
	}
}

// injectorProcess is one replica inside the test, with the rights of its
// service account and no others.
type injectorProcess struct {
	config Config
	logs   *lockedBuffer
	stop   func()
}

func startInjector(t *testing.T, admin *rest.Config) *injectorProcess {
	t.Helper()
	ports := freePorts(t, 4)
	p := &injectorProcess{logs: &lockedBuffer{}}
	var err error
	p.config, err = ParseConfig([]string{
		"--proxy-image=" + testProxyImage, "--control-address=10.96.0.12:15012", "--webhook-address=0.0.0.0:" + ports[0],
		"--health-address=127.0.0.1:" + ports[1], "--metrics-address=127.0.0.1:" + ports[2], "--admin-address=127.0.0.1:" + ports[3],
	}, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	rc := rest.CopyConfig(admin)
	rc.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:hauberk-system:hauberk-injector",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:hauberk-system", "system:authenticated"}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, kubernetes.NewForConfigOrDie(rc), p.config, slog.New(slog.NewTextHandler(p.logs, nil)))
	}()
	p.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("injector: %v", err)
		}
		done <- nil // a second stop does not wait
	}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("injector's log:\n%s", p.logs)
		}
	})
	return p
}

// ready asks /readyz.
func (p *injectorProcess) ready(ctx context.Context) error {
	body, err := fetch(ctx, "http://"+p.config.HealthAddress+"/readyz")
	if err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	return nil
}

func fetch(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return string(body), err
}

func equalBundles(bundles [][]byte) bool {
	return len(bundles) > 0 && len(bundles[0]) > 0 &&
		!slices.ContainsFunc(bundles, func(b []byte) bool { return !bytes.Equal(b, bundles[0]) })
}
