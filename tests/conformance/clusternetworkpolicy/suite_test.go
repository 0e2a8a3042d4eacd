// Package clusternetworkpolicy runs the conformance suite of
// sigs.k8s.io/network-policy-api against the current cluster and writes the
// suite's own report. It owns the choice of features, which is all of them; the
// cases are the suite's.
package clusternetworkpolicy

import (
	"errors"
	"flag"
	"os"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/yaml"

	api "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	reports "sigs.k8s.io/network-policy-api/conformance/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	"sigs.k8s.io/network-policy-api/conformance/utils/flags"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
)

var lock = flag.String("lock", "", "file to lock, shared, during each case, for a cluster that others change under an exclusive lock")

func TestConformance(t *testing.T) {
	settings, err := config.GetConfig()
	if err != nil {
		t.Fatalf("cluster's configuration (set KUBECONFIG): %v", err)
	}
	objects, err := client.New(settings, client.Options{})
	if err != nil {
		t.Fatalf("client: %v", err)
	}
	if err := api.Install(objects.Scheme()); err != nil {
		t.Fatalf("scheme: %v", err)
	}
	clients, err := kubernetes.NewForConfig(settings)
	if err != nil {
		t.Fatalf("client: %v", err)
	}
	s, err := suite.NewConformanceProfileTestSuite(suite.ConformanceProfileOptions{
		Options: suite.Options{
			Client: objects, ClientSet: clients, KubeConfig: *settings,
			Debug: *flags.ShowDebug, CleanupBaseResources: *flags.CleanupBaseResources,
			SupportedFeatures: suite.AllFeatures.Clone(),
		},
		Implementation: reports.Implementation{
			Organization: "hauberk-mesh", Project: "hauberk", URL: "https://github.com/hauberk-mesh/hauberk",
			Version: version(), Contact: []string{"https://github.com/hauberk-mesh/hauberk/issues"},
		},
		ConformanceProfiles: sets.New(suite.CNPConformanceProfileName),
	})
	if err != nil {
		t.Fatalf("suite: %v", err)
	}
	func() {
		defer turn(t)()
		s.Setup(t)
	}()
	if err := s.Run(t, cases()); err != nil {
		t.Fatalf("run: %v", err)
	}
	report, err := s.Report()
	if err != nil {
		t.Fatalf("report: %v", err)
	}
	text, err := yaml.Marshal(report)
	if err != nil {
		t.Fatalf("report: %v", err)
	}
	t.Logf("%d cases\n%s", len(tests.ConformanceTests), text)
	if *flags.ReportOutput != "" {
		if err := os.WriteFile(*flags.ReportOutput, text, 0o644); err != nil {
			t.Errorf("report: %v", err)
		}
	}
}

// cases is the suite's, each of which holds the lock as long as it runs.
func cases() []suite.ConformanceTest {
	var out []suite.ConformanceTest
	for _, c := range tests.ConformanceTests {
		test := c.Test
		c.Test = func(t *testing.T, s *suite.ConformanceTestSuite) {
			defer turn(t)()
			test(t, s)
		}
		out = append(out, c)
	}
	return out
}

// turn holds a shared lock on the file that -lock names until it is called.
func turn(t *testing.T) (end func()) {
	t.Helper()
	if *lock == "" {
		return func() {}
	}
	f, err := os.OpenFile(*lock, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatalf("lock the cluster: %v", err)
	}
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH)
	}
	if err != nil {
		t.Fatalf("lock %s: %v", *lock, err)
	}
	return func() {
		if err := f.Close(); err != nil {
			t.Errorf("end the lock: %v", err)
		}
	}
}

// version is the mesh's, for the report.
func version() string {
	if v := os.Getenv("HAUBERK_VERSION"); v != "" {
		return v
	}
	return "dev"
}
