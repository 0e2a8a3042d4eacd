package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Secret is the name of the Secret that the replicas share.
const Secret = "hauberk-injector-webhook"

// Config names the objects. All fields are required.
type Config struct {
	Namespace            string // of the Secret and the Service
	Service              string // that the webhook names
	WebhookConfiguration string
}

// dnsNames are the names that the API server may verify.
func (c Config) dnsNames() []string {
	base := c.Service + "." + c.Namespace + ".svc"
	return []string{base, base + ".cluster.local"}
}

// every is the longest time between two looks at everything, so that a
// certificate is renewed, and a missed event made good.
const every = 10 * time.Minute

// Manager keeps certificate, Secret and caBundle right. Its methods are safe
// for concurrent use; Run is called once.
type Manager struct {
	// Set once.
	client kubernetes.Interface
	cfg    Config
	log    *slog.Logger
	now    func() time.Time
	report func(error)

	// current is nil until the first certificate is known.
	current atomic.Pointer[tls.Certificate]
	wake    chan struct{} // of size 1: a second wish to look is the same wish
}

// New makes a manager. report is told after each look whether the certificate
// is served and the API server trusts it: nil, or why not.
func New(client kubernetes.Interface, cfg Config, log *slog.Logger, report func(error)) *Manager {
	return &Manager{client: client, cfg: cfg, log: log, now: time.Now, report: report, wake: make(chan struct{}, 1)}
}

// GetCertificate is for tls.Config: a renewed certificate serves the next
// handshake.
func (m *Manager) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := m.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("no serving certificate yet")
}

// Expiry is when the serving certificate ends; zero without one.
func (m *Manager) Expiry() time.Time {
	if c := m.current.Load(); c != nil {
		return c.Leaf.NotAfter
	}
	return time.Time{}
}

// Run watches the Secret and the webhook configuration and repairs them until
// ctx is done. It returns nil: what fails is reported and tried again.
func (m *Manager) Run(ctx context.Context) error {
	only := func(name string) informers.SharedInformerOption {
		return informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		})
	}
	secrets := informers.NewSharedInformerFactoryWithOptions(m.client, 0, informers.WithNamespace(m.cfg.Namespace), only(Secret))
	hooks := informers.NewSharedInformerFactoryWithOptions(m.client, 0, only(m.cfg.WebhookConfiguration))
	events := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { m.look() },
		UpdateFunc: func(any, any) { m.look() },
		DeleteFunc: func(any) { m.look() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		secrets.Core().V1().Secrets().Informer(),
		hooks.Admissionregistration().V1().MutatingWebhookConfigurations().Informer(),
	} {
		if _, err := informer.AddEventHandler(events); err != nil {
			return fmt.Errorf("watch webhook certificates: %w", err)
		}
	}
	secrets.Start(ctx.Done())
	hooks.Start(ctx.Done())
	defer secrets.Shutdown()
	defer hooks.Shutdown()

	m.look()
	timer := time.NewTimer(every)
	defer timer.Stop()
	wait := time.Second
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		err := m.reconcile(ctx)
		if ctx.Err() != nil {
			return nil
		}
		m.report(err)
		if err != nil {
			m.log.Warn("webhook certificates not in order", "error", err, "retry_in", wait)
			timer.Reset(wait)
			wait = min(wait*2, time.Minute)
			continue
		}
		wait = time.Second
		timer.Reset(every)
	}
}

func (m *Manager) look() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// reconcile reads the Secret, renews what is due, serves it, and publishes its
// authorities.
func (m *Manager) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	material, err := m.secret(ctx)
	if err != nil {
		return err
	}
	// Publish before serving: the API server then knows the authority before
	// it meets a certificate of it.
	publish := m.publish(ctx, material.bundle())
	if c := m.current.Load(); c == nil || !bytes.Equal(c.Leaf.Raw, material.leaf.cert.Raw) {
		m.current.Store(material.certificate())
		m.log.Info("serving certificate loaded", "not_after", material.leaf.cert.NotAfter)
	}
	return publish
}

// secret returns the shared material, made or renewed if that is due. Of two
// replicas that write at once one wins by the resource version, and the other
// takes the winner's. The chart makes the Secret, empty: the right to create
// Secrets would be the right to have tokens of any service account minted.
func (m *Manager) secret(ctx context.Context) (material, error) {
	secrets := m.client.CoreV1().Secrets(m.cfg.Namespace)
	for range 5 {
		stored, err := secrets.Get(ctx, Secret, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return material{}, fmt.Errorf("secret %s/%s is missing: install the chart again", m.cfg.Namespace, Secret)
		}
		if err != nil {
			return material{}, fmt.Errorf("read secret %s: %w", Secret, err)
		}
		held, err := decode(stored.Data)
		if err != nil {
			m.log.Warn("secret is damaged and made anew", "secret", Secret, "error", err)
			held = material{}
		}
		renewed, changed, err := renew(held, m.cfg.dnsNames(), m.now())
		if err != nil {
			return material{}, fmt.Errorf("renew webhook certificates: %w", err)
		}
		if !changed {
			return renewed, nil
		}
		update := stored.DeepCopy()
		if update.Data, err = renewed.encode(); err != nil {
			return material{}, err
		}
		_, err = secrets.Update(ctx, update, metav1.UpdateOptions{})
		switch {
		case err == nil:
			m.log.Info("webhook certificates renewed", "secret", Secret, "not_after", renewed.leaf.cert.NotAfter)
			return renewed, nil
		case apierrors.IsConflict(err), apierrors.IsNotFound(err):
			continue // another replica was first
		default:
			return material{}, fmt.Errorf("write secret %s: %w", Secret, err)
		}
	}
	return material{}, fmt.Errorf("write secret %s: others change it all the time", Secret)
}

// publish puts the bundle into each webhook that names our Service.
func (m *Manager) publish(ctx context.Context, bundle []byte) error {
	hooks := m.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	stored, err := hooks.Get(ctx, m.cfg.WebhookConfiguration, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read mutatingwebhookconfiguration %s: %w", m.cfg.WebhookConfiguration, err)
	}
	type client struct {
		CABundle []byte `json:"caBundle"`
	}
	type hook struct {
		Name         string `json:"name"` // the key of a strategic merge
		ClientConfig client `json:"clientConfig"`
	}
	var patch struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Webhooks []hook `json:"webhooks"`
	}
	// The version guards against a webhook that is removed between reading and
	// patching, which the merge would bring back as a stump.
	patch.Metadata.ResourceVersion = stored.ResourceVersion
	ours := 0
	for _, w := range stored.Webhooks {
		if !m.ours(w) {
			continue
		}
		ours++
		if !bytes.Equal(w.ClientConfig.CABundle, bundle) {
			patch.Webhooks = append(patch.Webhooks, hook{w.Name, client{bundle}})
		}
	}
	if ours == 0 {
		return fmt.Errorf("mutatingwebhookconfiguration %s names service %s/%s nowhere: install the chart again",
			m.cfg.WebhookConfiguration, m.cfg.Namespace, m.cfg.Service)
	}
	if len(patch.Webhooks) == 0 {
		return nil
	}
	encoded, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encode caBundle patch: %w", err)
	}
	if _, err := hooks.Patch(ctx, stored.Name, types.StrategicMergePatchType, encoded, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("patch caBundle of %s: %w", stored.Name, err)
	}
	m.log.Info("webhook caBundle patched", "webhooks", len(patch.Webhooks))
	return nil
}

func (m *Manager) ours(w admissionv1.MutatingWebhook) bool {
	s := w.ClientConfig.Service
	return s != nil && s.Name == m.cfg.Service && s.Namespace == m.cfg.Namespace
}
