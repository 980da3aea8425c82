#!/usr/bin/perl
# Stands in for VMware Server's installer. Like it, this one asks its questions
# on standard output, reads one line of standard input for each, gives up when
# there are no more, writes /etc/vmware/config and /etc/vmware/locations from
# the answers, and forgets to remove /etc/vmware/not_configured.
use strict;
use warnings;

$| = 1;
my @questions = (
    ['licence',   'Do you accept? (yes/no)', qr/^yes$/i],
    ['networking', 'Do you want networking for your virtual machines? (yes/no/help) [yes]', qr/^(yes|no|)$/i],
    ['bridge',    'Your computer has one ethernet network interface available. Please specify a name for this network. [Bridged]', qr/^\S*$/],
    ['port',      'Please specify a port for remote console connections to use [902]', qr/^\d*$/],
    ['machines',  'In which directory do you want to keep your virtual machine files? [/var/lib/vmware/Virtual Machines]', qr/^(\/.*)?$/],
    ['serial',    "Please enter your 20-character serial number.\n\nType XXXXX-XXXXX-XXXXX-XXXXX or 'Enter' to cancel:", qr/^([A-Z0-9]{5}(-[A-Z0-9]{5}){3})?$/],
);
my %default = (networking => 'yes', bridge => 'Bridged', port => '902', machines => '/var/lib/vmware/Virtual Machines');

print "Making sure services for VMware Server are stopped.\n\n";
my %answer;
for my $q (@questions) {
    my ($name, $text, $valid) = @$q;
    while (1) {
        print "$text ";
        my $line = <STDIN>;
        if (!defined $line) {
            print "\n";
            print STDERR "Cannot read an answer (end of input).\n\nExecution aborted.\n";
            exit 1;
        }
        $line =~ s/\s+$//;
        print "$line\n\n";
        if ($line !~ $valid) {
            print "The answer \"$line\" is invalid.\n\n";
            next;
        }
        $answer{$name} = $line eq '' ? $default{$name} // '' : $line;
        last;
    }
}

sub put {
    my ($path, $text) = @_;
    open my $f, '>', $path or die "Unable to open $path: $!\n";
    print $f $text;
    close $f or die "Unable to write $path: $!\n";
}
mkdir '/etc/vmware';
put('/etc/vmware/config', join '',
    qq(authd.port = "$answer{port}"\n),
    qq(vmnet1.name = "$answer{bridge}"\n),
    qq(vmdir = "$answer{machines}"\n),
    qq(networking = "$answer{networking}"\n),
    qq(serial = "$answer{serial}"\n));
put('/etc/vmware/locations', "answer VMDIR $answer{machines}\nanswer NETWORKING $answer{networking}\n");
print "The configuration of VMware Server for Linux for this running kernel completed successfully.\n";
