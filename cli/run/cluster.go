package run

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is which cluster a command speaks to: kubectl's own flags.
type Cluster struct {
	Kubeconfig string
	Context    string
	Namespace  string
	// Connect replaces the way to the cluster; nil means the kubeconfig.
	Connect func() (*Clients, error)
}

// AddFlags defines --kubeconfig, --context and -n.
func (c *Cluster) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "path to the kubeconfig file (default: $KUBECONFIG, or ~/.kube/config)")
	f.StringVar(&c.Context, "context", "", "context of the kubeconfig")
	f.StringVarP(&c.Namespace, "namespace", "n", "", "namespace (default: that of the context)")
}

func (c *Cluster) loader() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.Kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: c.Context})
}

// Config is the client configuration of the cluster.
func (c *Cluster) Config() (*rest.Config, error) {
	cfg, err := c.loader().ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, Fail(ExitUnreachable, "name one with --kubeconfig, or set KUBECONFIG", "no cluster is configured")
	}
	if err != nil {
		return nil, Fail(ExitBadInput, "look at the file with `kubectl config view`", "kubeconfig: %w", err)
	}
	cfg.QPS, cfg.Burst = 100, 200
	cfg.UserAgent = filepath.Base(os.Args[0])
	return cfg, nil
}

// CurrentNamespace is what -n says, or else the context.
func (c *Cluster) CurrentNamespace() string {
	if c.Namespace != "" {
		return c.Namespace
	}
	if c.Connect != nil {
		return "default"
	}
	if ns, _, err := c.loader().Namespace(); err == nil && ns != "" {
		return ns
	}
	return "default"
}

// Clients are the ways to speak to an API server.
type Clients struct {
	Config     *rest.Config
	Kube       kubernetes.Interface
	Dynamic    dynamic.Interface
	Extensions apiextensions.Interface
	// DialPod replaces the way to pods; nil means the API server's port-forward.
	DialPod DialPod
}

// Clients connects to the cluster.
func (c *Cluster) Clients() (*Clients, error) {
	if c.Connect != nil {
		return c.Connect()
	}
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	out := &Clients{Config: cfg}
	if out.Kube, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	if out.Dynamic, err = dynamic.NewForConfig(cfg); err != nil {
		return nil, fmt.Errorf("dynamic client: %w", err)
	}
	if out.Extensions, err = apiextensions.NewForConfig(cfg); err != nil {
		return nil, fmt.Errorf("extensions client: %w", err)
	}
	return out, nil
}
